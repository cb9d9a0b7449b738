"""The prior p(z): a Gaussian or a mixture of Gaussians, optionally followed by a normalizing flow.

A VAE is trained against N(0, I), but the codes of real images do not fill it. A density that is fitted to them after
training (the aggregated posterior; Ghosh et al., "From variational to deterministic autoencoders", 2020, section 4)
gives better samples. It is fitted at export and stored beside the graphs.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime.checks import Rng, as_codes, check_count, check_number, frozen_copy, make_rng
from vae_runtime.errors import InputError
from vae_runtime.npz import parse_arrays, read_file, save_arrays
from vae_runtime.prior.flow import ARRAYS, Flow

Codes = NDArray[np.float32]

MAX_SAMPLES = 1_000_000
"""Maximum number of codes per call."""
MAX_COMPONENTS = 1024
"""Maximum number of components."""

_MIXTURE = {"weights": ("f", 1), "means": ("f", 2), "scales": ("f", 3), "spreads": ("f", 2)}
_CODES = {"code_mean": ("f", 1), "code_covariance": ("f", 2)}


@dataclass(frozen=True, eq=False)
class Prior:
    """x ~ sum_k weights_k N(means_k, A_k A_k^T) with A_k = scales_k diag(spreads_k); z = flow(x), or x without a flow.

    Components that share one `scales` have common axes and differ in their variances along them: semi-tied covariances
    (Gales, "Semi-tied covariance matrices for hidden Markov models", 1999), which need few codes to fit.
    """

    weights: Codes
    """(K,), positive, sum 1."""
    means: Codes
    """(K, latent_dim)"""
    scales: Codes | None = None
    """(K, latent_dim, latent_dim), or (1, latent_dim, latent_dim) if shared; invertible; None: the identity."""
    spreads: Codes | None = None
    """(K, latent_dim), positive; None: ones."""
    flow: Flow | None = None
    code_mean: Codes | None = None
    """(latent_dim,): the mean of the codes of the pictures that the draws look like, where it is not that of the draws:
    a prior that was tuned with a decoder is no density of codes any more. `fit_prior` then moves it by how codes
    differ. None, as `code_covariance`: the draws are like codes."""
    code_covariance: Codes | None = None
    """(latent_dim, latent_dim)"""

    def __post_init__(self) -> None:
        for name in self._arrays():
            value = frozen_copy(getattr(self, name))
            if not np.isfinite(value).all():
                raise InputError(f"prior: {name} has non-finite values; fit it again")
            object.__setattr__(self, name, value)
        count, dim = self.means.shape if self.means.ndim == 2 else (0, 0)
        if self.weights.shape != (count,) or not 1 <= count <= MAX_COMPONENTS or dim < 1:
            raise InputError(
                f"prior: weights {self.weights.shape} and means {self.means.shape}, "
                f"expected (K,) and (K, latent_dim) with K from 1 to {MAX_COMPONENTS}"
            )
        if self.weights.min() <= 0 or abs(float(self.weights.sum(dtype=np.float64)) - 1) > 1e-4:
            raise InputError(f"prior: weights sum to {self.weights.sum():g}, expected positive numbers that sum to 1")
        if self.scales is not None:
            _check_scales(self.scales, count, dim)
        if self.spreads is not None and (self.spreads.shape != (count, dim) or self.spreads.min() <= 0):
            raise InputError(f"prior: spreads {self.spreads.shape}, expected {(count, dim)}, all positive")
        if self.flow is not None and self.flow.latent_dim != dim:
            raise InputError(f"prior: the flow has latent_dim {self.flow.latent_dim}, the mixture {dim}")
        if (self.code_mean is None) != (self.code_covariance is None):
            raise InputError("prior: code_mean and code_covariance, expected both or none")
        if self.code_mean is not None and self.code_covariance is not None:
            shapes = self.code_mean.shape, self.code_covariance.shape
            if shapes != ((dim,), (dim, dim)):
                raise InputError(f"prior: code_mean and code_covariance {shapes}, expected {((dim,), (dim, dim))}")

    def _arrays(self) -> dict[str, Codes]:
        """The arrays but the flow's that are not None, by name."""
        given = {name: getattr(self, name) for name in _MIXTURE | _CODES}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def standard(cls, latent_dim: int) -> Prior:
        """N(0, I)."""
        return cls(np.ones(1, np.float32), np.zeros((1, latent_dim), np.float32))

    @property
    def latent_dim(self) -> int:
        """Length of a code."""
        return int(self.means.shape[1])

    @property
    def is_standard(self) -> bool:
        """Whether this is N(0, I)."""
        return self.scales is None and self.spreads is None and self.flow is None and not self.means.any()

    @property
    def kind(self) -> str:
        """Description: "N(0, I)", "a Gaussian", "8 Gaussians" or "a flow over 8 Gaussians"."""
        if self.is_standard:
            return "N(0, I)"
        mixture = f"{len(self.weights)} Gaussians" if len(self.weights) > 1 else "a Gaussian"
        return mixture if self.flow is None else f"a flow over {mixture}"

    @property
    def center(self) -> NDArray[np.float64]:
        """The mean of the mixture, mapped by the flow if there is one: (latent_dim,)."""
        mean = self.weights.astype(np.float64) @ self.means
        return mean if self.flow is None else self.flow.forward(mean[None])[0]

    @functools.cached_property
    def of_codes(self) -> Prior:
        """The density of the codes of pictures: this prior, or, if it was tuned, the Gaussian of `code_mean`."""
        if self.code_mean is None or self.code_covariance is None:
            return self
        variances, directions = np.linalg.eigh(self.code_covariance.astype(np.float64))
        scales = directions * np.sqrt(np.maximum(variances, 1e-6 * max(1.0, variances.max())))
        return Prior(np.ones(1, np.float32), self.code_mean[None], scales[None].astype(np.float32))

    def sample(self, count: int, rng: Rng = None, temperature: float = 1.0, truncation: float | None = None) -> Codes:
        """Draw codes, float32 (count, latent_dim); the same seed gives the same bits.

        A component k is chosen by its weight, then x = means_k + temperature * A_k eps with eps ~ N(0, I), and z is
        flow(x) or x.
        temperature: 0 to 10, scales the standard deviations of each component; below 1 the faces are cleaner and more
        alike, at 0 they are the components' means.
        truncation: 0.1 to 10; elements of eps whose magnitude exceeds it are drawn again (the truncation trick of
        Brock, Donahue and Simonyan 2019). None: no truncation.
        """
        number = check_count(count, "n", 0, MAX_SAMPLES)
        spread = check_number(temperature, "temperature", 0, 10)
        generator = make_rng(rng)
        chosen = np.zeros(number, np.intp)
        if len(self.weights) > 1:
            edges = np.cumsum(self.weights, dtype=np.float64)
            chosen = np.searchsorted(edges[:-1], generator.random(number), side="right")
        eps = generator.standard_normal((number, self.latent_dim))
        if truncation is not None:
            limit = check_number(truncation, "truncation", 0.1, 10)
            while (outside := np.abs(eps) > limit).any():
                eps[outside] = generator.standard_normal(int(outside.sum()))
        if self.spreads is not None:
            eps *= self.spreads[chosen]
        if self.scales is not None:
            shapes = chosen if len(self.scales) > 1 else np.zeros_like(chosen)
            for k in np.unique(shapes):
                eps[shapes == k] = eps[shapes == k] @ self.scales[k].T.astype(np.float64)
        x = self.means[chosen] + spread * eps
        with np.errstate(over="ignore", invalid="ignore"):  # from an untrusted file
            codes = np.asarray(x if self.flow is None else self.flow.forward(x), np.float32)
        if not np.isfinite(codes).all():
            raise InputError("prior: its samples are not finite; fit it again")
        return codes

    def log_prob(self, z: ArrayLike) -> NDArray[np.float64]:
        """Exact log p(z) in nats of codes (n, latent_dim): float64 (n,)."""
        return self._log_prob_and_parts(z)[0]

    def log_prob_and_score(self, z: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """log p(z), float64 (n,), and its gradient with respect to z (the score), float64 (n, latent_dim).

        For a mixture: -sum_k r_k (A_k A_k^T)^-1 (x - means_k), with r_k the posterior probability of component k.
        """
        log_prob, each, white = self._log_prob_and_parts(z)
        pulls = np.exp(each - _log_sum(each))[:, :, None] * white
        if self.spreads is not None:
            pulls /= self.spreads[:, None]
        if self.scales is not None:
            if len(self.scales) == 1:
                pulls = pulls.sum(axis=0, keepdims=True)
            pulls = np.matmul(pulls, self._whitening)
        score = np.asarray(-pulls.sum(axis=0), np.float64)
        return log_prob, score if self.flow is None else self.flow.vjp(np.asarray(as_codes(z), np.float64), score)

    def _log_prob_and_parts(self, z: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """log p(z), (n,), and `_components` of x."""
        x = as_codes(z, self.latent_dim).astype(np.float64)
        log_det: NDArray[np.float64] | float = 0.0
        if self.flow is not None:
            x, log_det = self.flow.inverse(x)
        each, white = self._components(x)
        return _log_sum(each) + log_det, each, white

    def _components(self, codes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """log of weights_k N(codes | k), (K, n), and the whitened codes of each component, (K, n, latent_dim)."""
        white = codes[None]
        if self.scales is not None:
            white = np.matmul(white, self._whitening.transpose(0, 2, 1))
        white = white - self._centers
        if self.spreads is not None:
            white /= self.spreads[:, None]
        return self._log_constants[:, None] - (white**2).sum(axis=2) / 2, white

    @functools.cached_property
    def _centers(self) -> NDArray[np.float64]:
        """The whitened means, (K, 1, latent_dim)."""
        centers = self.means[:, None].astype(np.float64)
        return centers if self.scales is None else np.matmul(centers, self._whitening.transpose(0, 2, 1))

    @functools.cached_property
    def _log_constants(self) -> NDArray[np.float64]:
        """The part of log(weights_k N(z | k)) that does not depend on z, (K,)."""
        constants = np.log(self.weights.astype(np.float64)) - self.latent_dim / 2 * math.log(2 * math.pi)
        if self.scales is not None:
            constants += np.linalg.slogdet(self._whitening)[1]
        if self.spreads is not None:
            constants -= np.log(self.spreads.astype(np.float64)).sum(axis=1)
        return constants

    @functools.cached_property
    def _whitening(self) -> NDArray[np.float64]:
        """The inverse of each of `scales`."""
        assert self.scales is not None
        return np.linalg.inv(self.scales.astype(np.float64))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a .npz, and return its path; the same prior gives the same bytes."""
        flow = {} if self.flow is None else {name: getattr(self.flow, name) for name in ARRAYS}
        return save_arrays(path, self._arrays() | flow)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prior:
        """Read a file that `save` wrote. Raises ModelFileError for other files, InputError for invalid values."""
        return cls.from_bytes(read_file(path), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Prior:
        """As `load`, from the bytes of the file. name: shown in errors."""
        known = _MIXTURE | _CODES
        mixture = {key: kind for key, kind in known.items() if key in ("weights", "means") or _has(data, key)}
        bent = ARRAYS if _has(data, "orders") else {}
        arrays = parse_arrays(data, name, mixture | bent)
        flow = Flow(**{key: arrays.pop(key) for key in bent}) if bent else None
        return cls(flow=flow, **arrays)


def _has(data: bytes, field: str) -> bool:
    """Whether a .npz seems to contain an array; `parse_arrays` checks."""
    return f"{field}.npy".encode() in data


def _check_scales(scales: Codes, count: int, dim: int) -> None:
    if scales.shape not in ((count, dim, dim), (1, dim, dim)):
        raise InputError(f"prior: scales {scales.shape}, expected {(count, dim, dim)}, or {(1, dim, dim)} for all")
    singular = np.linalg.svd(scales, compute_uv=False).astype(np.float64)
    if (singular.min(axis=1) <= singular.max(axis=1) * dim * np.finfo(np.float32).eps).any():
        raise InputError("prior: scales are singular; fit it again")


def _log_sum(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """log sum exp over the first axis."""
    top = each.max(axis=0)
    return np.asarray(top + np.log(np.exp(each - top).sum(axis=0)))


def sample_prior(n: int, latent_dim: int, rng: Rng = None, temperature: float = 1.0) -> Codes:
    """Draw `n` codes from N(0, temperature^2 I), the prior of training: float32 (n, latent_dim)."""
    return Prior.standard(latent_dim).sample(n, rng, temperature)
