"""Validation of arguments: random generators, arrays of codes, counts and numbers."""

from __future__ import annotations

import math
import numbers
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from vae_runtime.errors import InputError, InputTypeError

Array: TypeAlias = NDArray[np.floating]
Rng: TypeAlias = int | np.random.Generator | None


def make_rng(rng: Rng) -> np.random.Generator:
    """A NumPy generator from a seed (an int >= 0), a generator (returned as it is) or None (fresh entropy).

    Raises InputTypeError for another type and InputError for a negative seed.
    """
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    if isinstance(rng, bool) or not isinstance(rng, numbers.Integral):
        raise InputTypeError(f"rng: got {type(rng).__name__}, expected a seed (int), a numpy Generator or None")
    if rng < 0:
        raise InputError(f"rng: got the seed {show_integer(int(rng))}, expected an integer >= 0")
    return np.random.default_rng(int(rng))


def as_latent(value: ArrayLike, name: str = "z", kinds: str = "iuf") -> Array:
    """`value` as a native float32 or float64 array, its numbers checked to be finite.

    kinds: the kinds of NumPy types to take; "biuf" for booleans as well. Raises InputTypeError for what is not numeric,
    InputError for NaN or infinity with the first index.
    """
    if value is None:
        raise InputTypeError(f"{name}: got None, expected an array of numbers")
    try:
        array = np.asarray(from_torch(value))
    except ValueError as error:
        raise InputError(f"{name}: rows of different lengths, expected a rectangular array") from error
    except Exception as error:  # what other libraries raise for arrays that they cannot convert
        raise InputTypeError(f"{name}: got {type(value).__name__}, expected an array of numbers ({error})") from error
    if array.dtype.kind not in kinds:
        raise InputTypeError(f"{name}: got an array of {array.dtype}, expected real numbers")
    # Asking for the native type also turns big-endian input round, which ONNX Runtime would misread.
    array = array.astype(np.float64 if array.dtype.itemsize > 4 or array.dtype.kind in "iu" else np.float32, copy=False)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = ", ".join(str(int(i)) for i in bad[0])
        raise InputError(f"{name}: {array[tuple(bad[0])]} at index ({where}), expected finite numbers")
    return array


def from_torch(value: Any) -> Any:
    """A torch tensor as NumPy takes it: without its gradient, on the CPU, and not in bfloat16."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        return value.float() if str(value.dtype) == "torch.bfloat16" else value
    return [from_torch(item) for item in value] if isinstance(value, (list, tuple)) else value


def frozen_copy(value: ArrayLike, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A read-only copy in C order, so that what an object was made from stays its owner's."""
    array = np.array(value, dtype, order="C")
    array.setflags(write=False)
    return array


def as_codes(z: ArrayLike, latent_dim: int | None = None, name: str = "z") -> Array:
    """`z` as a finite array (n, d), one code (d,) as (1, d). InputError for another rank, or another d than given."""
    codes = as_latent(z, name)
    shape, codes = codes.shape, codes[None] if codes.ndim == 1 else codes
    if codes.ndim != 2 or (latent_dim is not None and codes.shape[1] != latent_dim):
        wanted = "d" if latent_dim is None else latent_dim
        raise InputError(f"{name}: got the shape {shape}, expected (n, {wanted})")
    return codes


def as_pair(a: ArrayLike, b: ArrayLike, names: tuple[str, str]) -> tuple[Array, Array]:
    first, second = as_latent(a, names[0]), as_latent(b, names[1])
    if first.shape != second.shape or first.ndim == 0:
        raise InputError(
            f"{names[0]} and {names[1]}: got the shapes {first.shape} and {second.shape}, expected equal ones (..., d)"
        )
    return first, second


def check_count(value: object, name: str, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`, else InputTypeError or InputError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputTypeError(f"{name}: got {value!r}, expected an integer from {low} to {high}")
    number = int(value)
    if not low <= number <= high:
        raise InputError(f"{name}: got {show_integer(number)}, expected {low} to {high}")
    return number


def show_integer(number: int) -> str:
    """An integer for a message; a long one is not printed, and Python refuses to print one above 4300 digits."""
    return str(number) if abs(number) < 10**20 else "an integer of more than 20 digits"


def check_number(value: object, name: str, low: float, high: float) -> float:
    """`value` as a finite float from `low` to `high`, else InputTypeError or InputError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputTypeError(f"{name}: got {value!r}, expected a number from {low:g} to {high:g}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        number = -math.inf if value < 0 else math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise InputError(f"{name}: got {number}, expected {low:g} to {high:g}")
    return number


def check_choice(value: object, name: str, *choices: str) -> None:
    """Raise InputError unless `value` is one of two or more texts."""
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise InputError(f"{name}: got {value!r}, expected {', '.join(others)} or {last}")
