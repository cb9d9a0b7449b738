"""Pictures to codes by optimization: the most probable code given the known pixels.

The encoder estimates a code in one pass; these functions minimize -log p(x|z) - log p(z), with p(x|z) =
N(decode(z), variance I) over the known pixels and p(z) the model's prior. inverse.onnx gives the squared error and its
gradient with respect to z; the rest is NumPy. `VAE.invert`, `VAE.inpaint` and `VAE.upscale` are thin calls of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_runtime.images import Pixels, to_unit
from vae_runtime.ort.graph import Graph
from vae_runtime.prior import Codes, Prior

Floats: TypeAlias = NDArray[np.float64]
Bits: TypeAlias = NDArray[np.bool_]
Objective: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]
"""Codes (n, latent_dim) -> the value of each, (n,), and its gradient, (n, latent_dim)."""
Encode: TypeAlias = Callable[[Pixels], Codes]
"""uint8 (n, S, S, 3) -> mu (n, latent_dim)."""
Decode: TypeAlias = Callable[[Codes], Pixels]
"""(n, latent_dim) -> uint8 (n, S, S, 3)."""

MAX_STEPS = 10_000
"""Most steps of one descent."""
LEARNING_RATE = 0.1
"""Of the first step; codes are of the order of 1."""

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
# Variance of the mean of a block of pixels, as a share of a pixel's: errors cancel in part. 0.3 was best for 4x4, 8x8.
_BLOCK_VARIANCE = 0.3


def invert(
    pixels: Pixels,
    hidden: Bits,
    encode: Encode,
    decode: Decode,
    gradient: Graph,
    prior: Prior,
    variance: float,
    steps: int,
) -> Codes:
    """The most probable codes of pictures (n, S, S, 3) of which the pixels `hidden` (n, S, S) are unknown.

    gradient: the graph of inverse.onnx. variance: of a known pixel around the decoded one, in [0, 1] units.
    """
    weight = (~hidden[:, None]).astype(np.float32)
    objective = negative_log_posterior(gradient, prior, to_unit(pixels), weight, variance)
    start = fill(pixels, hidden, lambda filled: decode(encode(filled)))
    return descend(objective, encode(start), steps)


def upscale(
    small: Pixels, encode: Encode, decoder: Graph, gradient: Graph, prior: Prior, variance: float, steps: int
) -> Codes:
    """The most probable codes of pictures whose block means are `small` (n, side, side, 3), where side divides S.

    variance: of a pixel of the large picture around the decoded one, in [0, 1] units.
    """
    size = decoder.outputs["image"][-1]
    resized = [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in small]
    large = np.stack(resized) if resized else np.empty((0, size, size, 3), np.uint8)
    objective = negative_log_posterior_of_means(decoder, gradient, prior, to_unit(small), _BLOCK_VARIANCE * variance)
    return descend(objective, encode(large), steps)


def descend(objective: Objective, start: Codes, steps: int) -> Codes:
    """The codes of least value that Adam finds from `start` (n, latent_dim), float32."""
    return adam(objective, start.astype(np.float64), steps).astype(np.float32)


def adam(objective: Objective, start: Floats, steps: int, learning_rate: float = LEARNING_RATE) -> Floats:
    """The codes of least value among `start` (n, latent_dim) and those that `steps` steps of Adam lead to.

    Kingma & Ba, "Adam" (2015), algorithm 1. The learning rate falls to 0 along half a cosine. Rows are
    independent, and none ends worse than it began.
    """
    z = np.array(start, np.float64)
    first, second = np.zeros_like(z), np.zeros_like(z)
    best, least = z.copy(), np.full(len(z), np.inf)
    for step in range(steps + 1):
        values, gradient = objective(z)
        better = values < least
        best[better], least[better] = z[better], values[better]
        if step < steps:
            first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
            second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
            mean, square = first / (1 - _BETAS[0] ** (step + 1)), second / (1 - _BETAS[1] ** (step + 1))
            rate = learning_rate * (1 + np.cos(np.pi * step / steps)) / 2
            z = z - rate * mean / (np.sqrt(square) + _EPSILON)
    return best


def negative_log_posterior(
    inverse: Graph, prior: Prior, image: NDArray[np.float32], weight: NDArray[np.float32], variance: float
) -> Objective:
    """-log p(image|z) - log p(z) without the constants of p(image|z), in nats.

    inverse: the graph of inverse.onnx. image: (n, 3, S, S) in [0, 1]. weight: (n, 1, S, S), 0 for an unknown pixel.
    variance: of a known pixel around the decoded one.
    """

    def objective(z: Floats) -> tuple[Floats, Floats]:
        squares, gradient = inverse.run(z.astype(np.float32), image, weight)
        density, score = prior.log_prob_and_score(z)
        return squares / (2 * variance) - density, gradient / (2 * variance) - score

    return objective


def negative_log_posterior_of_means(
    decoder: Graph, inverse: Graph, prior: Prior, means: NDArray[np.float32], variance: float
) -> Objective:
    """As `negative_log_posterior`, of pictures of which the means of square blocks are known.

    means: (n, 3, side, side) in [0, 1], where side divides S. variance: of a mean around the decoded one.
    """
    factor = decoder.outputs["image"][-1] // means.shape[-1]
    everything = np.ones((len(means), 1, *decoder.outputs["image"][1:]), np.float32)

    def objective(z: Floats) -> tuple[Floats, Floats]:
        codes = z.astype(np.float32)
        (picture,) = decoder.run(codes)
        error = block_means(picture, factor) - means
        # inverse.onnx gives 2 J^T (picture - image), J the decoder's Jacobian matrix: any product J^T c, by the image
        # picture - c. Here c = A^T error, where A takes the means of blocks.
        cotangent = (error / np.float32(factor**2)).repeat(factor, axis=2).repeat(factor, axis=3)
        _, gradient = inverse.run(codes, picture - cotangent, everything)
        density, score = prior.log_prob_and_score(z)
        squares = (error.astype(np.float64) ** 2).sum(axis=(1, 2, 3))
        return squares / (2 * variance) - density, gradient / (2 * variance) - score

    return objective


def block_means(picture: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """(n, 3, S, S) -> (n, 3, S / factor, S / factor): the mean of each block of factor x factor pixels."""
    count, channels, height, width = picture.shape
    blocks = picture.reshape(count, channels, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(3, 5)))


def fill(pixels: Pixels, hidden: Bits, reconstruct: Callable[[Pixels], Pixels], rounds: int = 4) -> Pixels:
    """Pictures (n, S, S, 3) with a first guess at what is hidden (n, S, S): the mean color, then the model's own.

    Encoding and decoding what was filled in, a few times, draws it towards the model's faces: Rezende, Mohamed,
    Wierstra, "Stochastic backpropagation" (2014), appendix F, here without its noise.
    """
    if not hidden.any():
        return pixels
    known = ~hidden[..., None]
    mean = (pixels * known).sum(axis=(1, 2), dtype=np.float64) / known.sum(axis=(1, 2))
    filled = np.where(known, pixels, np.rint(mean)[:, None, None].astype(np.uint8))
    for _ in range(rounds):
        filled = np.where(known, pixels, reconstruct(filled))
    return filled
