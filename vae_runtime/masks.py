"""Masks: which pixels of a picture are hidden."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from vae_runtime.checks import from_torch
from vae_runtime.errors import InputError
from vae_runtime.images import (
    Images,
    ImageSource,
    Pixels,
    fit_square,
    is_one_image,
    load_each,
    load_mask,
    prepare,
    stack,
)

Bits: TypeAlias = NDArray[np.bool_]
Masks: TypeAlias = ImageSource | Bits | Iterable[ImageSource | Bits]


def prepare_masked(images: Images, mask: Masks | None, size: int) -> tuple[Pixels, Bits]:
    """Pictures as `images.prepare` returns them, (n, size, size, 3), and what is hidden of them, (n, size, size)."""
    if mask is None:
        pixels = prepare(images, size)
        return pixels, np.zeros(pixels.shape[:3], np.bool_)
    sources = list(load_each(images))
    hidden = [
        fit_mask(each, source.shape, size, f"mask[{index}]")
        for index, (each, source) in enumerate(zip(each_mask(mask, len(sources)), sources, strict=True))
    ]
    pixels = stack([fit_square(source, size) for source in sources], size)
    return pixels, np.stack(hidden) if hidden else np.zeros(pixels.shape[:3], np.bool_)


def each_mask(masks: Masks, count: int) -> Sequence[ImageSource | Bits]:
    """A mask for each of `count` pictures: the one for all, or one a picture; InputError for another number."""
    if hasattr(masks, "detach"):
        masks = np.asarray(from_torch(masks))
    stacked = isinstance(masks, np.ndarray) and masks.ndim == 3 and masks.shape[-1] not in (1, 3, 4)
    several = isinstance(masks, Iterable) and not isinstance(masks, Mapping) and not is_one_image(cast(Images, masks))
    found = list(cast(Iterable[ImageSource], masks)) if stacked or several else [cast(ImageSource, masks)] * count
    if len(found) != count:
        raise InputError(f"mask: got {len(found)} for {count} pictures, expected one for all or one for each")
    return found


def fit_mask(mask: ImageSource | Bits, picture: tuple[int, ...], size: int, name: str) -> Bits:
    """The hidden pixels (size, size) of a picture of the shape (H, W, 3) that `fit_square` has cut and resampled.

    mask: (H, W) or (size, size), bool, or a picture as `images.load_mask` reads it. A pixel that is made from a hidden
    one, be it in part, is hidden. Raises ImageError for an unreadable picture; InputError for another shape, and where
    nothing or everything is hidden.
    """
    try:
        if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
            mask = mask.astype(np.uint8)
        hidden = load_mask(cast(ImageSource, mask))
    except InputError as error:
        raise InputError(f"{name}: {str(error).removeprefix('image: ')}") from error
    if hidden.shape not in (tuple(picture[:2]), (size, size)):
        raise InputError(
            f"{name}: got {hidden.shape[1]} x {hidden.shape[0]} pixels, expected {picture[1]} x {picture[0]} as the "
            f"picture, or {size} x {size}"
        )
    white = hidden[..., None].repeat(3, axis=2).astype(np.uint8) * np.uint8(255)
    fitted: Bits = fit_square(white, size)[..., 0] > 0
    if fitted.all():
        raise InputError(f"{name}: hides the whole picture, expected some known pixels (black, transparent or False)")
    if not fitted.any():
        outside = " within the central square" if hidden.any() else ""
        raise InputError(f"{name}: hides nothing{outside}, expected some pixels to be white, painted or True")
    return fitted
