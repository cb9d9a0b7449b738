"""A code for a text, bit for bit the same on every machine, in Python and in JavaScript (demo/web/face_of.js).

Only operations that IEEE 754 defines exactly are used, in a fixed order: +, -, *, / in float64, and one rounding to
float32 at the end. No log, cos or tanh of a math library, no BLAS. Version 1 of the algorithm:

1. The text is folded: NFC, upper case, lower case (JavaScript has no casefold), NFC; runs of ASCII white space become
   one space, and are removed at both ends. New characters may depend on the Unicode version.
2. seed = SHA-256("anime-vae face 1" + one zero byte + UTF-8 of the text). The byte stream is SHA-256(seed + i) for
   i = 0, 1, ..., with i as 4 bytes, big-endian.
3. The first 4 bytes, big-endian, over 2^32, choose the component: the first whose cumulative weight is larger.
4. Each element of eps is (the sum of 12 big-endian uint16 of the stream - 393210) / 65536: Irwin and Hall's
   approximation of N(0, 1), exact in float64.
5. x = means_k + temperature * (scales_k (spreads_k * eps)); sums start at 0 and run from the first term to the last.
6. A flow is applied with the same order of summation, bias last, with `exact_exp`; sigmoid(v) = 1 / (1 + exp(-v)),
   tanh(v) = 1 - 2 / (1 + exp(2 v)).
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae_runtime.checks import check_number
from vae_runtime.errors import InputError, InputTypeError
from vae_runtime.prior.mixture import Codes, Prior

Floats: TypeAlias = NDArray[np.float64]

_DOMAIN = b"anime-vae face 1\0"
_UNIFORMS = 12  # their sum has the variance 1
_CENTER = _UNIFORMS * 65535 // 2
_LN2_HIGH, _LN2_LOW, _LOG2_E = 0.6931471803691238, 1.9082149292705877e-10, 1.4426950408889634
_LARGEST = 700.0
_INVERSE_FACTORIALS = [1 / math.factorial(n) for n in range(14)]


def text_code(text: str, prior: Prior, temperature: float = 0.8) -> Codes:
    """A sample of `prior` determined by `text` and `temperature`: float32 (latent_dim,).

    temperature: 0 to 10, as in `Prior.sample`. Raises InputTypeError unless `text` is a str, InputError if it is
    not valid Unicode.
    """
    spread, dim = check_number(temperature, "temperature", 0, 10), prior.latent_dim
    stream = _stream(fold(text), 4 + 2 * _UNIFORMS * dim)
    share = int.from_bytes(stream[:4], "big") / 2**32
    edges = np.cumsum(prior.weights, dtype=np.float64)
    component = int(np.searchsorted(edges[:-1], share, side="right"))
    sums = np.frombuffer(stream, ">u2", offset=4).reshape(dim, _UNIFORMS).sum(axis=1, dtype=np.int64)
    eps = (sums - _CENTER) / 65536
    if prior.spreads is not None:
        eps = eps * prior.spreads[component].astype(np.float64)
    if prior.scales is not None:
        eps = _product(prior.scales[component if len(prior.scales) > 1 else 0], eps)
    x = prior.means[component] + spread * eps
    return np.asarray(x if prior.flow is None else _flow(prior.flow, x), np.float32)


def fold(text: str) -> str:
    """Normalize case, Unicode composition and white space."""
    if not isinstance(text, str):
        raise InputTypeError(f"text: got {type(text).__name__}, expected a str")
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).upper().lower())
    return re.sub(r"[ \t\n\r\f\v]+", " ", folded).strip(" ")


def exact_exp(x: Floats) -> Floats:
    """exp(x) to a few units in the last place, bit for bit the same everywhere; x is clipped to +-700."""
    cut = np.clip(x, -_LARGEST, _LARGEST)
    power = np.floor(cut * _LOG2_E + 0.5)
    rest = (cut - power * _LN2_HIGH) - power * _LN2_LOW
    result = np.full_like(rest, _INVERSE_FACTORIALS[-1])
    for coefficient in reversed(_INVERSE_FACTORIALS[:-1]):
        result = result * rest + coefficient
    return np.asarray(np.ldexp(result, power.astype(np.int64)))


def _stream(text: str, count: int) -> bytes:
    try:
        seed = hashlib.sha256(_DOMAIN + text.encode()).digest()
    except UnicodeEncodeError as error:
        raise InputError(f"text: not valid Unicode at character {error.start} (a lone surrogate)") from error
    blocks = (hashlib.sha256(seed + index.to_bytes(4, "big")).digest() for index in range(-(-count // 32)))
    return b"".join(blocks)[:count]


def _product(matrix: NDArray[Any], vector: Floats) -> Floats:
    """matrix (m, n) times vector (n,), summed from the first term to the last."""
    total = np.zeros(len(matrix))
    for column, value in zip(matrix.T.astype(np.float64), vector, strict=True):
        total += column * value
    return total


def _flow(flow: Any, x: Floats) -> Floats:
    """`Flow.forward` of one code, with exact operations only."""
    y, half = x.copy(), len(x) // 2
    for layer, order in enumerate(flow.orders):
        before = _product(flow.inner[layer], y[order[:half]]) + flow.inner_bias[layer]
        hidden = before * (1 / (1 + exact_exp(-before)))
        moves, logs = np.split(_product(flow.outer[layer], hidden) + flow.outer_bias[layer], 2)
        scales = 1 - 2 / (1 + exact_exp(2 * logs))
        y[order[half:]] = y[order[half:]] * exact_exp(scales) + moves
    return np.asarray(flow.shift + _product(flow.basis, y))
