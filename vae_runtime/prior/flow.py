"""A normalizing flow x -> z over codes: invertible, with an exact density.

RealNVP (Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017): each coupling layer keeps one half of
its input, and scales and shifts the other half by the outputs of a small network of the first (equations 7 and 8).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae_runtime.checks import frozen_copy
from vae_runtime.errors import InputError

Floats: TypeAlias = NDArray[np.float64]

MAX_COUPLINGS = 64
"""Maximum number of coupling layers."""
ARRAYS: dict[str, tuple[str, int]] = {
    "orders": ("i", 2),
    "inner": ("f", 3),
    "inner_bias": ("f", 2),
    "outer": ("f", 3),
    "outer_bias": ("f", 2),
    "basis": ("f", 2),
    "shift": ("f", 1),
}
"""Kind and number of axes of each array, for `vae_runtime.npz.parse_arrays`."""


class Coupling(NamedTuple):
    """One layer of a `Flow`, in float64: d elements are kept, e are changed, d + e = latent_dim."""

    kept: NDArray[np.intp]
    changed: NDArray[np.intp]
    inner: Floats
    """(hidden, d)"""
    inner_bias: Floats
    outer: Floats
    """(2 e, hidden): rows of the shifts, then rows of the scales"""
    outer_bias: Floats

    def network(self, half: Floats) -> tuple[Floats, Floats, Floats]:
        """The kept half (n, d) -> pre-activations (n, hidden), shifts (n, e) and log scales (n, e) from -1 to 1."""
        before = half @ self.inner.T + self.inner_bias
        moves, scales = np.split(before * _sigmoid(before) @ self.outer.T + self.outer_bias, 2, axis=1)
        return before, moves, np.tanh(scales)


@dataclass(frozen=True, eq=False)
class Flow:
    """z = shift + basis @ couplings(x). L coupling layers, D = latent_dim, e = D - D // 2.

    Layer l splits x in the order `orders[l]`: the first D // 2 elements, a, stay, and the others, b, become
    exp(s(a)) b + t(a), with (t, r) = outer silu(inner a + inner_bias) + outer_bias and s = tanh(r).
    """

    orders: NDArray[np.int32]
    """(L, D): each row is a permutation of 0 to D - 1"""
    inner: NDArray[np.float32]
    """(L, hidden, D // 2)"""
    inner_bias: NDArray[np.float32]
    """(L, hidden)"""
    outer: NDArray[np.float32]
    """(L, 2 e, hidden)"""
    outer_bias: NDArray[np.float32]
    """(L, 2 e)"""
    basis: NDArray[np.float32]
    """(D, D), invertible"""
    shift: NDArray[np.float32]
    """(D,)"""

    def __post_init__(self) -> None:
        for name in ARRAYS:
            value = frozen_copy(getattr(self, name), np.int32 if name == "orders" else np.float32)
            if not np.isfinite(value).all():
                raise InputError(f"flow: {name} has non-finite values; fit it again")
            object.__setattr__(self, name, value)
        layers, dim = self.orders.shape if self.orders.ndim == 2 else (0, 0)
        hidden = self.inner_bias.shape[-1] if self.inner_bias.ndim == 2 else 0
        if not 1 <= layers <= MAX_COUPLINGS or dim < 2 or hidden < 1:
            raise InputError(
                f"flow: orders {self.orders.shape} and inner_bias {self.inner_bias.shape}, expected (L, latent_dim) "
                f"and (L, hidden) with L from 1 to {MAX_COUPLINGS} and latent_dim of 2 or more"
            )
        changed = 2 * (dim - dim // 2)
        shapes = {
            "inner": (layers, hidden, dim // 2),
            "inner_bias": (layers, hidden),
            "outer": (layers, changed, hidden),
            "outer_bias": (layers, changed),
            "basis": (dim, dim),
            "shift": (dim,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"flow: {name} {getattr(self, name).shape}, expected {shape}")
        if (np.sort(self.orders, axis=1) != np.arange(dim)).any():
            raise InputError(f"flow: each row of orders must be a permutation of 0 to {dim - 1}")
        if np.linalg.matrix_rank(self.basis) < dim:
            raise InputError("flow: basis is singular; fit it again")

    @property
    def latent_dim(self) -> int:
        """Length of a code."""
        return int(self.orders.shape[1])

    def forward(self, x: Floats) -> Floats:
        """x -> z, (n, latent_dim) each."""
        y = np.array(x, np.float64)
        for layer in self._couplings:
            _, moves, scales = layer.network(y[:, layer.kept])
            y[:, layer.changed] = y[:, layer.changed] * np.exp(scales) + moves
        return np.asarray(self.shift + y @ self.basis.T.astype(np.float64), np.float64)

    def inverse(self, z: Floats) -> tuple[Floats, Floats]:
        """z (n, latent_dim) -> x (n, latent_dim), and log |det dx/dz| (n,)."""
        y, log_det = self._start(z)
        for *_, scales in self._undo(y):
            log_det -= scales.sum(axis=1)
        return y, log_det

    def vjp(self, z: Floats, slope: Floats) -> Floats:
        """The gradient at z of f(x(z)) + log |det dx/dz|; slope: the gradient of f at x. (n, latent_dim) each."""
        y, _ = self._start(z)
        undone = [(layer, before, scales, y[:, layer.changed]) for layer, before, scales in self._undo(y)]
        gradient = np.array(slope, np.float64)
        for layer, before, scales, after in reversed(undone):
            # after = (b - moves) exp(-scales); log |det| is reduced by the sum of scales
            by_scale = -(gradient[:, layer.changed] * after + 1)
            gradient[:, layer.changed] *= np.exp(-scales)
            outward = np.concatenate([-gradient[:, layer.changed], by_scale * (1 - scales**2)], axis=1)
            sigmoid = _sigmoid(before)
            inward = outward @ layer.outer * sigmoid * (1 + before * (1 - sigmoid))
            gradient[:, layer.kept] += inward @ layer.inner
        return np.asarray(gradient @ self._unmixing, np.float64)

    def _start(self, z: Floats) -> tuple[Floats, Floats]:
        """The output of the couplings (n, latent_dim), and log |det| of the affine map after them (n,)."""
        y = (np.asarray(z, np.float64) - self.shift) @ self._unmixing.T
        return y, np.full(len(y), self._log_det)

    def _undo(self, y: Floats) -> Iterator[tuple[Coupling, Floats, Floats]]:
        """Invert the couplings on `y` in place, last to first; yield each with its pre-activations and log scales."""
        for layer in reversed(self._couplings):
            before, moves, scales = layer.network(y[:, layer.kept])
            y[:, layer.changed] = (y[:, layer.changed] - moves) * np.exp(-scales)
            yield layer, before, scales

    @functools.cached_property
    def _couplings(self) -> list[Coupling]:
        half = self.latent_dim // 2
        parts = (getattr(self, name).astype(np.float64) for name in ("inner", "inner_bias", "outer", "outer_bias"))
        orders = self.orders.astype(np.intp)
        return [Coupling(order[:half], order[half:], *each) for order, *each in zip(orders, *parts, strict=True)]

    @functools.cached_property
    def _unmixing(self) -> Floats:
        """The inverse of `basis`."""
        return np.asarray(np.linalg.inv(self.basis.astype(np.float64)))

    @functools.cached_property
    def _log_det(self) -> float:
        """log |det| of `_unmixing`."""
        return float(np.linalg.slogdet(self._unmixing)[1])


def _sigmoid(x: NDArray[Any]) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray((1 + np.tanh(x / 2)) / 2)
