"""Latent arithmetic in NumPy: pure functions on float arrays whose last axis is the latent one.

Sampling and divergences, then paths between codes. See `latent_analysis` for sets of codes.

Symbols follow Kingma & Welling, "Auto-Encoding Variational Bayes" (2014): q(z|x) = N(mu, diag(exp(logvar))),
the prior is N(0, I).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime.checks import Array, Rng, as_codes, as_latent, as_pair, check_choice, check_count, make_rng
from vae_runtime.errors import InputError

Method: TypeAlias = Literal["slerp", "lerp"]
PathMethod: TypeAlias = Literal["slerp", "lerp", "catmull-rom"]

LOGVAR_RANGE = (-30.0, 20.0)
"""`logvar` is clipped to this range before exp, in training as here: exp(20/2) is 22026, far below overflow."""
MAX_STEPS = 100_000
"""Most points of one interpolation."""

_PARALLEL = 1e-6  # radians: below, lerp differs from slerp by less than 1e-13
_OPPOSITE = 1e-3  # radians from 180 degrees: above, the plane of rotation is well defined


def _float_type(a: Array, b: Array) -> np.dtype[np.floating]:
    return np.result_type(a, b)


def reparameterize(mu: ArrayLike, logvar: ArrayLike, rng: Rng = None) -> Array:
    """z = mu + exp(logvar / 2) * eps with eps ~ N(0, I): a draw from q(z|x) (Kingma & Welling 2014, section 2.4).

    mu, logvar: (..., latent_dim). rng: seed, generator or None. Returns z of the same shape.
    `logvar` is clipped to `LOGVAR_RANGE`, as in training. The same seed gives the same bits.
    """
    mean, log_variance = as_pair(mu, logvar, ("mu", "logvar"))
    eps = make_rng(rng).standard_normal(mean.shape)
    z = mean + np.exp(np.clip(log_variance, *LOGVAR_RANGE) / 2) * eps
    return z.astype(_float_type(mean, log_variance), copy=False)


def kl_divergence(mu: ArrayLike, logvar: ArrayLike) -> NDArray[np.float64]:
    """KL(N(mu, diag(exp(logvar))) || N(0, I)) = 1/2 sum(exp(logvar) + mu^2 - 1 - logvar), in nats.

    mu, logvar: (..., latent_dim). Returns float64 (...), summed over the last axis, never negative
    (Kingma & Welling 2014, appendix B). `logvar` is clipped to `LOGVAR_RANGE`, as in training.
    """
    mean, log_variance = (part.astype(np.float64) for part in as_pair(mu, logvar, ("mu", "logvar")))
    log_variance = np.clip(log_variance, *LOGVAR_RANGE)
    # expm1 keeps the digits of exp(v) - 1 - v near v = 0, where the difference is v^2 / 2.
    total = 0.5 * (np.expm1(log_variance) - log_variance + mean**2).sum(axis=-1)
    return np.asarray(np.maximum(total, 0.0))


def _time(t: ArrayLike) -> NDArray[np.float64]:
    time = as_latent(t, "t").astype(np.float64)
    if time.size and (time.min() < 0 or time.max() > 1):
        raise InputError(f"t: got values from {time.min():g} to {time.max():g}, expected 0 to 1")
    return time[..., None]


def lerp(a: ArrayLike, b: ArrayLike, t: ArrayLike) -> Array:
    """The straight line (1 - t) a + t b. It is exactly `a` at t = 0 and exactly `b` at t = 1.

    a, b: (..., d) of equal shape. t: a number in [0, 1], or an array that broadcasts against (...).
    Returns (..., d), with the axes of t broadcast in.
    """
    first, second = as_pair(a, b, ("a", "b"))
    time = _time(t)
    return np.asarray((1 - time) * first + time * second).astype(_float_type(first, second), copy=False)


def _perpendicular(unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """A unit vector at right angles to each row of `unit`: the axis that the row uses least, made orthogonal."""
    axis = np.eye(unit.shape[-1])[np.abs(unit).argmin(axis=-1)]
    rest = axis - (axis * unit).sum(-1, keepdims=True) * unit
    return to_unit_length(rest)[0]


def to_unit_length(vector: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Scaling by the largest entry first keeps the squares of huge and of tiny numbers in range.
    scale = np.abs(vector).max(axis=-1, keepdims=True, initial=0.0)
    scaled = np.divide(vector, scale, out=np.zeros_like(vector), where=scale > 0)
    length = np.linalg.norm(scaled, axis=-1, keepdims=True)
    return np.divide(scaled, length, out=np.zeros_like(scaled), where=length > 0), scale * length


def slerp(a: ArrayLike, b: ArrayLike, t: ArrayLike) -> Array:
    """Spherical interpolation: sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, w the angle between a and b.

    Shoemake, "Animating rotation with quaternion curves" (1985); for latents White, "Sampling generative
    networks" (2016). It is exactly `a` at t = 0 and exactly `b` at t = 1. Parallel vectors and zero vectors have no
    arc: there it is `lerp`. Opposite vectors have many: there it turns through the coordinate axis that `a` uses
    least, the length going straight from |a| to |b| (in one dimension, which has no such axis, it is `lerp`).

    Arguments and result as in `lerp`.
    """
    first, second = as_pair(a, b, ("a", "b"))
    time = _time(t)
    x, y = first.astype(np.float64), second.astype(np.float64)
    (x_unit, x_norm), (y_unit, y_norm) = to_unit_length(x), to_unit_length(y)
    # Kahan's form of the angle keeps its digits near 0 and near 180 degrees, where arccos loses half of them.
    difference, total = (np.linalg.norm(part, axis=-1, keepdims=True) for part in (x_unit - y_unit, x_unit + y_unit))
    angle = 2 * np.arctan2(difference, total)

    sine = np.sin(np.where(angle > _PARALLEL, angle, 1.0))
    arc = np.sin((1 - time) * angle) / sine * x + np.sin(time * angle) / sine * y
    if x.shape[-1] > 1:
        turn = np.cos(time * angle) * x_unit + np.sin(time * angle) * _turning_axis(x_unit, y_unit)
        arc = np.where(angle > np.pi - _OPPOSITE, turn * ((1 - time) * x_norm + time * y_norm), arc)
    straight = (1 - time) * x + time * y
    no_arc = (angle < _PARALLEL) | (x_norm == 0) | (y_norm == 0) | (x.shape[-1] == 1)
    result = np.where(no_arc, straight, arc)
    result = np.where(time == 0, x, np.where(time == 1, y, result))
    return result.astype(_float_type(first, second), copy=False)


def _turning_axis(x_unit: NDArray[np.float64], y_unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction at right angles to x, in the plane of x and y; a fixed one where they span no plane."""
    beside = y_unit - (x_unit * y_unit).sum(-1, keepdims=True) * x_unit
    axis, length = to_unit_length(beside)
    return np.where(length > 1e-9, axis, _perpendicular(x_unit))


def interpolate(a: ArrayLike, b: ArrayLike, steps: int = 8, method: Method = "slerp") -> Array:
    """`steps` points from `a` to `b`, both ends included.

    a, b: (..., d) of equal shape. steps: 2 to `MAX_STEPS`. method: "slerp" or "lerp".
    Returns (steps, ..., d); the first is exactly `a`, the last exactly `b`.
    """
    check_choice(method, "method", "slerp", "lerp")
    between = slerp if method == "slerp" else lerp
    first, second = as_pair(a, b, ("a", "b"))
    times = np.linspace(0, 1, check_count(steps, "steps", 2, MAX_STEPS))
    return between(first, second, times.reshape(-1, *[1] * (first.ndim - 1)))


def path(keys: ArrayLike, steps: int = 8, method: PathMethod = "catmull-rom", closed: bool = False) -> Array:
    """A path through all `keys` (k, d), k >= 2, with `steps` points from each key to the next.

    method: "catmull-rom", smooth at the keys as well (uniform spline; Catmull & Rom 1974), or "slerp" or "lerp"
    between keys. Open: ((k - 1) * steps + 1, d), from the first key to the last. closed: (k * steps, d), back to
    the first key, which is not repeated at the end, so that the path loops. Every key is met exactly.
    """
    corners = as_codes(keys, name="keys")
    count = check_count(steps, "steps", 1, MAX_STEPS)
    check_choice(method, "method", "catmull-rom", "slerp", "lerp")
    if len(corners) < 2 or len(corners) * count > MAX_STEPS:
        raise InputError(f"keys: got {len(corners)} with {count} steps each, expected 2 or more and {MAX_STEPS} points")
    times = np.arange(count) / count
    pieces = []
    for index in range(len(corners) if closed else len(corners) - 1):
        before, start, end, after = (_key(corners, index + offset, closed) for offset in (-1, 0, 1, 2))
        if method == "catmull-rom":
            pieces.append(_catmull_rom(before, start, end, after, times))
        else:
            pieces.append((slerp if method == "slerp" else lerp)(start, end, times))
    whole = pieces if closed else [*pieces, corners[-1:]]
    return np.concatenate(whole).astype(corners.dtype, copy=False)


def _key(keys: Array, index: int, closed: bool) -> Array:
    """A key by its place; beyond an open end, the last two keys are continued in a straight line."""
    if closed or 0 <= index < len(keys):
        return np.asarray(keys[index % len(keys)])
    return np.asarray(2 * keys[0] - keys[1] if index < 0 else 2 * keys[-1] - keys[-2])


def _catmull_rom(p0: Array, p1: Array, p2: Array, p3: Array, times: NDArray[np.float64]) -> Array:
    t = times[:, None]
    slope = p2 - p0
    return np.asarray(
        p1 + 0.5 * (slope * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3)
    )


def grid(corners: ArrayLike, rows: int = 8, columns: int = 8, method: Method = "slerp") -> Array:
    """The square between four codes: (rows, columns, d), by `interpolate` down both sides, then across.

    corners: (4, d), top left, top right, bottom left, bottom right; each is met exactly.
    """
    four = as_codes(corners, name="corners")
    if len(four) != 4:
        raise InputError(f"corners: got {len(four)} codes, expected 4")
    left, right = (interpolate(four[side], four[side + 2], rows, method) for side in (0, 1))
    return interpolate(left, right, columns, method).swapaxes(0, 1)


def traverse(z: ArrayLike, index: int, values: ArrayLike) -> Array:
    """One code (d,) with its number at `index` replaced by each of `values` (m,): (m, d)."""
    code, numbers_ = as_latent(z), as_latent(values, "values")
    if code.ndim != 1 or numbers_.ndim != 1:
        raise InputError(f"z and values: got the shapes {code.shape} and {numbers_.shape}, expected (d,) and (m,)")
    place = check_count(index, "index", 0, len(code) - 1)
    codes = np.repeat(code[None], len(numbers_), axis=0)
    codes[:, place] = numbers_
    return codes


def analogy(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Array:
    """a - b + c: the difference of `a` and `b`, added to `c` (Mikolov et al. 2013; for faces Radford et al. 2016)."""
    first, second = as_pair(a, b, ("a", "b"))
    return np.asarray(first - second + as_pair(a, c, ("a", "c"))[1])
