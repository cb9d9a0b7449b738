"""From pictures to codes the other way round: not by the encoder's one guess, but by descent on what the decoder draws.

A picture may be known in part, or through noise: z is then the most probable code of what is known, argmax p(x|z) p(z)
with p(x|z) = N(decode(z), variance I) over the known pixels, and p(z) the model's prior. inverse.onnx gives the squared
error and its gradient; the rest is NumPy. See `VAE.invert`, `VAE.inpaint` and `VAE.upscale`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.images import ImageSource, Pixels, fit_square, load_image
from vae_runtime.ort.graph import Graph
from vae_runtime.prior.mixture import Prior

Floats: TypeAlias = NDArray[np.float64]
Bits: TypeAlias = NDArray[np.bool_]
Masks: TypeAlias = ImageSource | Bits | Iterable[ImageSource | Bits]
Objective: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]
"""Codes (n, latent_dim) -> the value of each, (n,), and its gradient, (n, latent_dim)."""

MAX_STEPS = 10_000
"""Most steps of one descent."""
LEARNING_RATE = 0.1
"""Of the first step; codes are of the size of 1."""

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def adam(objective: Objective, start: Floats, steps: int, learning_rate: float = LEARNING_RATE) -> Floats:
    """The codes of least value among `start` (n, latent_dim) and those that `steps` steps of Adam lead to.

    Kingma & Ba, "Adam" (2015), algorithm 1. The learning rate falls to 0 along half a cosine. Each row goes its own
    way, and no row ends worse than it began.
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
    """Pictures (n, S, S, 3) with a first guess at what is hidden (n, S, S): the mean colour, then the model's own.

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


def each_mask(masks: Masks, count: int) -> list[ImageSource | Bits]:
    """A mask for each of `count` pictures: the one for all, or one a picture; InputError for another number."""
    if isinstance(masks, np.ndarray):
        per_picture = masks.ndim == 4 or (masks.ndim == 3 and masks.shape[-1] not in (1, 3, 4))
        found = list(masks) if per_picture else [masks] * count
    elif isinstance(masks, Iterable) and not isinstance(masks, (str, bytes, bytearray, memoryview)):
        found = list(masks)
    else:
        found = [masks] * count
    if len(found) != count:
        raise InputError(f"mask: got {len(found)} for {count} pictures, expected one for all or one for each")
    return found


def fit_mask(mask: ImageSource | Bits, picture: tuple[int, ...], size: int, name: str) -> Bits:
    """The hidden pixels (size, size) of a picture of the shape (H, W, 3) that `fit_square` has cut and resampled.

    mask: (H, W) or (size, size), hidden where it is True or brighter than 127. A pixel that is made from a hidden one,
    be it in part, is hidden. Raises ImageError for no picture; InputError for another shape, or where all is hidden.
    """
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        mask = mask.astype(np.uint8) * np.uint8(255)
    try:
        hidden = load_image(cast(ImageSource, mask)).max(axis=2, keepdims=True) > 127
    except InputError as error:
        raise InputError(f"{name}: {str(error).removeprefix('image: ')}") from error
    if hidden.shape[:2] not in (tuple(picture[:2]), (size, size)):
        raise InputError(
            f"{name}: got {hidden.shape[1]} x {hidden.shape[0]} pixels, expected {picture[1]} x {picture[0]} as the "
            f"picture, or {size} x {size}"
        )
    white: Pixels = hidden.repeat(3, axis=2).astype(np.uint8) * np.uint8(255)
    fitted: Bits = fit_square(white, size)[..., 0] > 0
    if fitted.all():
        raise InputError(f"{name}: hides the whole picture, expected some pixels to be known (black or False)")
    return fitted
