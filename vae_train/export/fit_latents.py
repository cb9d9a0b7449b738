"""Fit the prior to sample from, and named directions, to the codes of the training pictures.

The aggregated posterior of real pictures is not N(0, I). It is fitted here by Gaussian mixtures and by a flow, and the
best is exported: ex-post density estimation (Ghosh et al., "From variational to deterministic autoencoders", 2020,
section 4).
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from vae_runtime.attributes import Attributes
from vae_runtime.directions import Directions
from vae_runtime.latent import reparameterize
from vae_runtime.latent_analysis import attribute_direction, pca_directions
from vae_runtime.prior import Prior
from vae_runtime.prior import fit_prior as fit_few
from vae_runtime.prior.fitting import MIN_CODES
from vae_train.data.faces import Faces
from vae_train.data.labels import Labels, avatar_labels
from vae_train.data.sources import AVATARS
from vae_train.export.fit_attributes import fit_attributes
from vae_train.export.fit_flow import fit_flow
from vae_train.model.metrics import sliced_wasserstein
from vae_train.model.networks import VAE
from vae_train.model.tensors import to_unit

COMPONENTS = (1, 2, 4, 8, 16, 32)
"""Candidate numbers of full-covariance Gaussians, tried in order until the score falls."""
TIED = (8, 16, 32)
"""The same for Gaussians that share the principal directions of the codes."""
PCA = 8
"""Number of exported principal directions."""

_BATCH = 250
_MAX_CODES = 16_000  # that a mixture is fitted to
_ITERATIONS = 40
_FLOOR = 1e-4  # added to variances, for numerical stability
_TIED_FLOOR = 1e-3  # the same for whitened points
_FLOW_GAIN = 1.0  # gain in nats of a mixture over N(0, I) from which on a flow, which is slow, is fitted too
_FLOW_CODES = 4000  # fewest pictures for a flow, which has more parameters than a mixture
_COMPARED = 1000  # most pictures that samples are compared with
_SWITCHES = (("false", "true"), ("no", "yes"), ("0", "1"))
_FEWEST = 50  # pictures with an attribute, and without it, that make it a direction


@dataclass(frozen=True)
class Codes:
    """q(z|x) of pictures."""

    mu: NDArray[np.float32]
    """(n, latent_dim)"""
    logvar: NDArray[np.float32]
    """(n, latent_dim)"""


@torch.no_grad()
def encode(network: VAE, pixels: NDArray[np.uint8]) -> Codes:
    """The posteriors of pictures, uint8 (n, 3, S, S)."""
    network.eval()
    device = next(network.parameters()).device
    parts = [
        network.encoder(to_unit(torch.from_numpy(np.array(pixels[start : start + _BATCH])).to(device)))
        for start in range(0, len(pixels), _BATCH)
    ]
    mu, logvar = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
    return Codes(mu, logvar)


def draw(codes: Codes, seed: int = 0) -> NDArray[np.floating]:
    """One z ~ q(z|x) for each picture, (n, latent_dim)."""
    return reparameterize(codes.mu, codes.logvar, np.random.default_rng(seed))


@torch.no_grad()
def decode(network: VAE, z: NDArray[np.float32]) -> torch.Tensor:
    """The images of codes (n, latent_dim), uint8 (n, 3, S, S)."""
    network.eval()
    device = next(network.parameters()).device
    parts = [network.decoder(part.to(device)).cpu() for part in torch.from_numpy(z).split(_BATCH)]
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def fit_prior(train: Codes, held_out: Codes, seed: int = 0) -> tuple[Prior, dict[str, float]]:
    """The mixture with the highest density of held-out codes, and the mean log density of each candidate in nats.

    Candidates are fitted to one draw z ~ q(z|x) for each picture, so the noise of the posteriors is included. They are
    named "unit" for N(0, I), and by their number of components, "tied" if these share the principal directions: full
    covariances need more codes than most sources have, while codes differ most in their distance from the mean. With
    too few codes for any covariance, "shrunk" is what `vae_runtime.prior.fit_prior` fits to them.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(train.mu))[:_MAX_CODES]
    points = reparameterize(train.mu[chosen], train.logvar[chosen], rng)
    test = draw(held_out, seed)
    fits = {"unit": Prior.standard(points.shape[1])}
    scores = {"unit": float(fits["unit"].log_prob(test).mean())}
    least = 2 * points.shape[1]  # fewest codes that determine a covariance
    if len(np.unique(train.mu, axis=0)) >= MIN_CODES and len(points) < least:
        fits["shrunk"] = fit_few(train.mu, train.logvar, seed)[0]
        scores["shrunk"] = float(fits["shrunk"].log_prob(test).mean())
    for kind, counts, fit, each in (("", COMPONENTS, _mixture, least), (" tied", TIED, _tied_mixture, _FEWEST)):
        before = -np.inf
        for count in counts:
            if len(points) < max(least, each * count):
                break
            name = f"{count}{kind}"
            fits[name] = fit(points, count, seed)
            scores[name] = float(fits[name].log_prob(test).mean())
            if scores[name] < before:  # more components would overfit
                break
            before = scores[name]
    return fits[max(scores, key=lambda name: scores[name])], scores


def _mixture(points: NDArray[np.floating], count: int, seed: int) -> Prior:
    """A mixture of `count` full-covariance Gaussians."""
    weights, means, covariances = _fit(points, count, "full", _FLOOR, seed)
    return Prior(weights, means, np.linalg.cholesky(covariances))


def _tied_mixture(points: NDArray[np.floating], count: int, seed: int) -> Prior:
    """A mixture of `count` Gaussians with shared principal directions: diagonal covariances of whitened points."""
    center = points.mean(0, dtype=np.float64)
    variances, directions = np.linalg.eigh(np.cov(points.T, dtype=np.float64))
    deviations = np.sqrt(np.maximum(variances, _FLOOR))
    weights, means, squares = _fit((points - center) @ directions / deviations, count, "diag", _TIED_FLOOR, seed)
    scales = directions * deviations
    return Prior(weights, center + means @ scales.T, scales[None], np.sqrt(squares))


def _fit(points: NDArray[np.floating], count: int, kind: str, floor: float, seed: int) -> tuple[Any, Any, Any]:
    """Weights, means and covariances of a fitted mixture, by descending weight. floor: added to variances."""
    settings = {"reg_covar": floor, "max_iter": _ITERATIONS, "tol": 1e-2, "random_state": seed}
    model = GaussianMixture(count, covariance_type=kind, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few steps more change little
        model.fit(points.astype(np.float64))
    order = np.argsort(model.weights_)[::-1]
    return model.weights_[order] / model.weights_.sum(), model.means_[order], model.covariances_[order]


def fit_directions(train: Codes, pixels: NDArray[np.uint8], labels: Labels, measure_hair: bool = False) -> Directions:
    """Named directions: the principal ones, and those of labels, of the brightness and, if asked for, of hair colors.

    pixels, uint8 (n, 3, S, S), and the columns of `labels` have the rows of `train`. The direction of a label is the
    difference of class means: a regression would find one along which codes, and so images, hardly vary. Colors of a
    picture are correlated, so their directions are ridge regressions.
    """
    axes, _ = pca_directions(train.mu, min(PCA, train.mu.shape[1], len(train.mu) - 1))
    found = {f"pca-{number + 1}": axis for number, axis in enumerate(axes) if axis.any()}
    for name, marks in label_targets(labels).items():
        known = ~np.isnan(marks)
        found[name] = attribute_direction(train.mu[known], marks[known], method="mean")
    for name, marks in (_brightness(pixels) | (_hair(pixels) if measure_hair else {})).items():
        if np.ptp(marks) > 0 and name not in found:
            found[name] = attribute_direction(train.mu, marks, method="ridge", penalty=float(len(train.mu)) / 100)
    return Directions(tuple(found), np.stack(list(found.values())))


def label_targets(labels: Labels) -> dict[str, NDArray[np.floating]]:
    """Name of a direction -> 1 for the faces that have the value, 0 for the others, NaN where it is not known.

    The column "hair" gives "hair-blue" for the value "blue"; a column of yes and no gives one direction with its name.
    Values of few faces give none.
    """
    marks: dict[str, NDArray[np.floating]] = {}
    for column, values in labels.items():
        known = sorted({value for value in values if value is not None})
        yes_and_no = tuple(value.lower() for value in known) in _SWITCHES
        for value in known[1:] if yes_and_no else known:
            name = _slug(column) if yes_and_no else f"{_slug(column)}-{_slug(value)}"
            marks[name] = np.array([np.nan if each is None else each == value for each in values], np.float64)
    return {
        name: each
        for name, each in marks.items()
        if _FEWEST <= np.nansum(each) <= np.count_nonzero(~np.isnan(each)) - _FEWEST
    }


def _slug(text: str) -> str:
    """ "DARK_BROWN" -> "dark-brown" """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _brightness(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.floating]]:
    parts = [pixels[start : start + 4096].mean((1, 2, 3), dtype=np.float64) for start in range(0, len(pixels), 4096)]
    return {"brightness": np.concatenate(parts)}


def _hair(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.floating]]:
    """Brightness and color of the place where drawn faces have hair."""
    side = pixels.shape[-1]
    top = np.array(pixels[:, :, side // 16 : side // 4, side // 4 : -side // 4]).mean((2, 3), dtype=np.float64)
    red, green, blue = top.T
    return {
        "hair-bright": top.mean(1),
        "hair-reddish": red - (green + blue) / 2,
        "hair-greenish": green - (red + blue) / 2,
        "hair-bluish": blue - (red + green) / 2,
    }


class Fitted(NamedTuple):
    """What is fitted to the codes of a model's training pictures."""

    prior: Prior
    directions: Directions
    attributes: Attributes | None
    scores: dict[str, float]
    """Of `fit_prior`."""


def fit_latents(network: VAE, faces: Faces, mirrored: bool = False, prior: Prior | None = None) -> Fitted:
    """The prior, the directions and the attributes for a network and the source that it was trained on.

    prior: one to keep, that of a second stage, which then knows the mean and the covariance of the codes; by default,
    the best of those fitted here.
    mirrored: whether it was trained on mirrored pictures, too; classifiers, and a flow, which would overfit otherwise,
    are then fitted to the codes of both. A flow is not tried where the best mixture hardly improves on N(0, I). Fits
    run on one thread: their many small operations would wait for each other on a busy machine.
    """
    held_out = faces.held_out()
    rows = np.flatnonzero(~held_out)
    pixels = faces.pixels[~held_out]
    train, test = encode(network, pixels), encode(network, faces.pixels[held_out])
    is_drawn = faces.name == AVATARS
    columns = avatar_labels(faces.labels) if is_drawn else faces.labels
    labels = {name: [values[row] for row in rows] for name, values in columns.items()}
    others = {name: [values[row] for row in np.flatnonzero(held_out)] for name, values in columns.items()}
    views = [train]
    if mirrored and (labels or (prior is None and len(pixels) >= _FLOW_CODES)):
        views.append(encode(network, pixels[..., ::-1]))
    with single_thread():
        attributes = fit_attributes(np.stack([each.mu for each in views]), labels, test.mu, others)
        directions = fit_directions(train, pixels, labels, measure_hair=is_drawn)
        if prior is not None:
            prior = with_codes(prior, train)
            return Fitted(prior, directions, attributes, {"kept": float(prior.log_prob(draw(test)).mean())})
        prior, scores = fit_prior(train, test)
    gain = max(scores.values()) - scores["unit"]
    if len(pixels) >= _FLOW_CODES and gain >= _FLOW_GAIN and network.latent_dim > 1:  # a coupling splits a code in two
        with single_thread():
            mu, logvar = (np.concatenate([getattr(each, name) for each in views]) for name in ("mu", "logvar"))
            flow = fit_flow(mu, logvar)
        scores["flow"] = float(flow.log_prob(draw(test)).mean())
        prior = closest_prior(network, [prior, flow], pixels)
    return Fitted(prior, directions, attributes, scores)


def with_codes(prior: Prior, codes: Codes) -> Prior:
    """A prior with the mean and the covariance of the aggregated posterior."""
    covariance = np.cov(codes.mu.T.astype(np.float64)) + np.diag(np.exp(codes.logvar.astype(np.float64)).mean(axis=0))
    return dataclasses.replace(prior, code_mean=codes.mu.mean(axis=0), code_covariance=np.atleast_2d(covariance))


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch, NumPy and scikit-learn on one thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def closest_prior(network: VAE, priors: Sequence[Prior], pixels: NDArray[np.uint8], seed: int = 0) -> Prior:
    """The prior whose samples have the smallest sliced Wasserstein distance to the training pictures.

    The density of held-out codes does not rank samples: in hundreds of dimensions most of it concerns directions that
    hardly show (Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016). pixels: uint8
    (n, 3, S, S), those that the priors were fitted to, so that the held-out ones remain unseen.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(pixels))[:_COMPARED]
    real = torch.from_numpy(pixels[np.sort(chosen)])

    def distance(prior: Prior) -> float:
        levels = sliced_wasserstein(decode(network, prior.sample(len(real), seed)), real)
        return sum(levels.values()) / len(levels)

    return min(priors, key=distance)
