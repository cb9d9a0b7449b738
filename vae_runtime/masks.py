"""Masks: which pixels of a picture are hidden."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.images import Images, ImageSource, Pixels, each_image, fit_square, load_at, load_image, prepare, stack

Bits: TypeAlias = NDArray[np.bool_]
Masks: TypeAlias = ImageSource | Bits | Iterable[ImageSource | Bits]


def prepare_masked(images: Images, mask: Masks | None, size: int) -> tuple[Pixels, Bits]:
    """Pictures as `images.prepare` returns them, (n, size, size, 3), and what is hidden of them, (n, size, size)."""
    if mask is None:
        pixels = prepare(images, size)
        return pixels, np.zeros(pixels.shape[:3], np.bool_)
    sources = [load_at(source, index) for index, source in enumerate(each_image(images))]
    hidden = [
        fit_mask(each, source.shape, size, f"mask[{index}]")
        for index, (each, source) in enumerate(zip(each_mask(mask, len(sources)), sources, strict=True))
    ]
    pixels = stack([fit_square(source, size) for source in sources], size)
    return pixels, np.stack(hidden) if hidden else np.zeros(pixels.shape[:3], np.bool_)


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
