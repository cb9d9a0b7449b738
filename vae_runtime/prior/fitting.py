"""Fit a prior to the codes of images, with NumPy alone.

A Gaussian with a shrunk covariance (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", 2004), blended with N(0, I), works from 16 images on, where the sample covariance of hundreds of latents is
singular. With more images, mixtures of Gaussians that share its principal axes fit better. A prior that exists already
can be moved to the mean and the covariance of the images instead. Cross-validation selects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime.checks import Rng, as_codes, make_rng
from vae_runtime.errors import InputError
from vae_runtime.latent import reparameterize
from vae_runtime.prior.mixture import Prior

Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.intp]

MIN_CODES = 16
"""Minimum number of distinct codes."""
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidate weights of the Gaussian of the codes in the blend with N(0, I); 0 is N(0, I) itself."""
COMPONENTS = (2, 4, 8, 16)
"""Candidate numbers of components."""

_PER_COMPONENT = 40  # fewest codes per component
_FOLDS, _ONE_FOLD = 5, 2000  # with 2000 codes or more, one of the five folds is enough
_ITERATIONS = 30
_MEAN_CODES = 20.0  # pseudo-counts that shrink a component's mean to the overall mean
_VARIANCE_CODES = 2000.0  # pseudo-counts that shrink its variances to their average
_FLOOR = 1e-6  # added to the variances
_BASE_DRAWS = 4096  # from so many the mean and the covariance of a prior are estimated


def fit_prior(
    mu: ArrayLike, logvar: ArrayLike, rng: Rng = 0, base: Prior | None = None
) -> tuple[Prior, dict[str, float]]:
    """Fit a density to the aggregated posterior of images; return it and the score of each candidate.

    mu, logvar: (n, latent_dim) of q(z|x), with at least `MIN_CODES` distinct rows. base: a prior of the same latents,
    for example the model's own. Candidates are a Gaussian blended with N(0, I), named by its weight ("0.5"), mixtures
    ("4 Gaussians"), and `base` under an affine map ("moved"), see `Frame`. A score is the mean log density of held-out
    draws, in nats per code; the candidate with the highest score is fitted to all codes. A `base` that was tuned with
    its decoder (`Prior.code_mean`) is moved whatever the scores: nothing else decodes to faces as good. Raises
    InputError.
    """
    means, log_variances = (
        as_codes(mu, name="mu").astype(np.float64),
        as_codes(logvar, name="logvar").astype(np.float64),
    )
    if means.shape != log_variances.shape:
        raise InputError(f"mu and logvar: got the shapes {means.shape} and {log_variances.shape}, expected equal ones")
    distinct = len(np.unique(means, axis=0))
    if distinct < MIN_CODES:
        raise InputError(f"images: got {distinct} distinct images, expected at least {MIN_CODES} to fit a prior")
    generator = make_rng(rng)
    draws = np.asarray(reparameterize(means, log_variances, generator), np.float64)
    splits = list(_folds(generator.permutation(len(means))))
    folds = [(_axes(means[train], log_variances[train]), draws[train], draws[test]) for train, test in splits]

    def score(blend: float, count: int) -> float:
        return _mean(_fit(axes, train, blend, count).log_prob(test) for axes, train, test in folds)

    scores = {(blend, 1): score(blend, 1) for blend in BLENDS}
    share, _ = max(scores, key=lambda choice: scores[choice])
    scores |= {(share, count): score(share, count) for count in COMPONENTS if len(means) >= _PER_COMPONENT * count}
    blend, count = max(scores, key=lambda choice: scores[choice])
    named = _named(scores)
    if base is not None and not base.is_standard:
        frame = Frame.of(base)
        named["moved"] = _mean(
            frame.move(means[train], log_variances[train]).log_prob(draws[test]) for train, test in splits
        )
        if base.code_mean is not None or named["moved"] > scores[blend, count]:
            return frame.move(means, log_variances), named
    standard = (blend, count) == (0, 1)
    prior = (
        Prior.standard(means.shape[1]) if standard else _fit(_axes(means, log_variances), draws, blend, count).prior()
    )
    return prior, named


def _mean(parts: Iterable[Floats]) -> float:
    return float(np.concatenate(list(parts)).mean())


def _named(scores: dict[tuple[float, int], float]) -> dict[str, float]:
    return {f"{count} Gaussians" if count > 1 else f"{blend:g}": each for (blend, count), each in scores.items()}


class Frame(NamedTuple):
    """A prior, with the mean and the symmetric root of the covariance of its codes, and the inverse of that root: (d,),
    (d, d)."""

    prior: Prior
    center: Floats
    root: Floats
    whiten: Floats

    @classmethod
    def of(cls, prior: Prior) -> Frame:
        """By its own account of its codes, or estimated from draws."""
        if prior.code_mean is not None and prior.code_covariance is not None:
            covariance = prior.code_covariance.astype(np.float64)
            return cls(prior, prior.code_mean.astype(np.float64), *_roots(covariance))
        draws = prior.sample(_BASE_DRAWS, 0).astype(np.float64)
        covariance = np.cov(draws.T) + _FLOOR * np.eye(draws.shape[1])
        return cls(prior, draws.mean(axis=0), *_roots(covariance))

    def move(self, mu: Floats, logvar: Floats) -> Prior:
        """The image of the prior under the affine map that gives its codes the mean and the covariance of q(z|x).

        The covariance is shrunk toward a multiple of that of the prior (Ledoit and Wolf, in coordinates in which that
        is the identity), so that a few pictures are enough.
        """
        prior, noise = self.prior, self.whiten @ np.diag(np.exp(logvar).mean(axis=0)) @ self.whiten
        stretch, _ = _roots(ledoit_wolf((mu - self.center) @ self.whiten)[0] + noise)
        linear = self.root @ stretch @ self.whiten
        shift = mu.mean(axis=0) - linear @ self.center
        if prior.code_mean is not None:
            mean, half = mu.mean(axis=0).astype(np.float32), linear @ self.root
            prior = dataclasses.replace(prior, code_mean=mean, code_covariance=(half @ half.T).astype(np.float32))
        if (flow := prior.flow) is not None:
            basis, center = (linear @ flow.basis).astype(np.float32), linear @ flow.shift + shift
            return dataclasses.replace(
                prior, flow=dataclasses.replace(flow, basis=basis, shift=center.astype(np.float32))
            )
        scales = np.eye(len(shift))[None] if prior.scales is None else prior.scales
        means = (prior.means @ linear.T + shift).astype(np.float32)
        return dataclasses.replace(prior, means=means, scales=(linear @ scales).astype(np.float32))


def _roots(covariance: Floats) -> tuple[Floats, Floats]:
    """The symmetric square root of a covariance, and its inverse."""
    variances, directions = np.linalg.eigh(covariance)
    deviations = np.sqrt(np.maximum(variances, _FLOOR))
    return (directions * deviations) @ directions.T, (directions / deviations) @ directions.T


class _Axes(NamedTuple):
    """Mean (d,), principal variances (d,) and principal directions (d, d), one per column."""

    center: Floats
    variances: Floats
    directions: Floats


class _Mixture(NamedTuple):
    """Gaussians in the coordinates x = (z - center) @ directions / deviations, with diagonal covariances."""

    axes: _Axes
    deviations: Floats
    weights: Floats
    means: Floats
    """(K, d)"""
    squares: Floats
    """Variances, (K, d)"""

    def log_prob(self, z: Floats) -> Floats:
        """log p(z) in nats, (n,)."""
        logs = self.log_parts((z - self.axes.center) @ self.axes.directions / self.deviations)
        top = logs.max(axis=1)
        constant = np.log(self.deviations).sum() + len(self.deviations) / 2 * np.log(2 * np.pi)
        return np.asarray(top + np.log(np.exp(logs - top[:, None]).sum(axis=1)) - constant)

    def log_parts(self, x: Floats) -> Floats:
        """log of weights_k N(x | k), without the constant: (n, K)."""
        inverse = 1 / self.squares
        distances = x**2 @ inverse.T - 2 * x @ (self.means * inverse).T + (self.means**2 * inverse).sum(axis=1)
        return np.asarray(np.log(self.weights) - (distances + np.log(self.squares).sum(axis=1)) / 2)

    def prior(self) -> Prior:
        """The same density as a `Prior`."""
        scales = self.axes.directions * self.deviations
        means = self.axes.center + self.means @ scales.T
        spreads = np.sqrt(self.squares).astype(np.float32) if len(self.weights) > 1 else None
        weights, centers = self.weights.astype(np.float32), means.astype(np.float32)
        return Prior(weights, centers, scales[None].astype(np.float32), spreads)


def _axes(mu: Floats, logvar: Floats) -> _Axes:
    """Principal axes of the aggregated posterior: the shrunk covariance of `mu` plus the mean variance of q(z|x)."""
    covariance = ledoit_wolf(mu)[0] + np.diag(np.exp(logvar).mean(axis=0))
    return _Axes(mu.mean(axis=0), *np.linalg.eigh(covariance))


def _fit(axes: _Axes, draws: Floats, blend: float, count: int) -> _Mixture:
    """Fit `count` Gaussians with common axes, and a mean and axis variances of their own.

    blend: weight of the codes' mean and covariance; the rest is N(0, I). A mixture is fitted to `draws` by expectation
    maximization with shrunk means and variances.
    """
    dim = len(axes.center)
    axes = axes._replace(center=blend * axes.center)
    deviations = np.sqrt(np.maximum(blend * axes.variances, 0) + (1 - blend) + _FLOOR)
    mixture = _Mixture(axes, deviations, np.ones(1), np.zeros((1, dim)), np.ones((1, dim)))
    if count == 1:
        return mixture
    points = (draws - axes.center) @ axes.directions / deviations
    means = 0.05 * np.random.default_rng(0).normal(size=(count, dim))
    squares = np.repeat(np.linspace(0.6, 1.5, count)[:, None], dim, axis=1)  # codes differ most in their norm
    mixture = _Mixture(axes, deviations, np.full(count, 1 / count), means, squares)
    for _ in range(_ITERATIONS):
        logs = mixture.log_parts(points)
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        sizes, sums = shares.sum(axis=0)[:, None], shares.T @ points
        means = sums / (sizes + _MEAN_CODES)
        spread = np.maximum(shares.T @ points**2 - 2 * means * sums + sizes * means**2, 0)
        level = (spread.mean(axis=1, keepdims=True) + _MEAN_CODES) / (sizes + _MEAN_CODES)
        squares = (spread + _VARIANCE_CODES * level) / (sizes + _VARIANCE_CODES)
        mixture = mixture._replace(weights=(sizes[:, 0] + 1) / (len(points) + count), means=means, squares=squares)
    return mixture


def ledoit_wolf(points: Floats) -> tuple[Floats, float]:
    """The covariance (d, d) of `points` (n, d), shrunk toward a multiple of I, and the shrinkage (0 to 1)."""
    count, dim = points.shape
    centered = points - points.mean(axis=0)
    sample = centered.T @ centered / count
    mean_variance = np.trace(sample) / dim
    squares = centered**2
    noise = ((squares.T @ squares).sum() / count - (sample**2).sum()) / (dim * count)
    distance = (sample**2).sum() / dim - mean_variance**2
    shrinkage = float(min(max(noise, 0.0) / distance, 1.0)) if distance > 0 else 0.0
    return (1 - shrinkage) * sample + shrinkage * mean_variance * np.eye(dim), shrinkage


def _folds(order: Rows) -> Iterator[tuple[Rows, Rows]]:
    parts = np.array_split(order, _FOLDS)
    for index in range(1 if len(order) >= _ONE_FOLD else _FOLDS):
        yield np.concatenate(parts[:index] + parts[index + 1 :]), parts[index]
