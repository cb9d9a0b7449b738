"""The one funnel for pictures. In: a path, bytes, PIL image or array becomes RGB uint8. Out: grids, PNG, animations.

The way in is made for files from strangers. Formats are an allowlist, and what a file claims (its bytes, pixels and
JPEG scans) is checked before anything is decoded, as Pillow's security handbook advises. EXIF orientation is applied,
transparency is blended on `BACKGROUND`, 16-bit grey is scaled to 8 bits, and of an animation the first frame counts.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_runtime.errors import (
    ImageArrayError,
    ImageError,
    ImageNotFoundError,
    ImagePermissionError,
    ImageTypeError,
    InputTypeError,
)

Pixels: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Pixels
Images: TypeAlias = ImageSource | Iterable[ImageSource]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What Pillow may open, by content; everything else is refused whatever its name says."""
BACKGROUND = (255, 255, 255)
"""The colour that transparent pixels are blended on."""
MAX_BYTES = 64 * 2**20
"""Largest file."""
MAX_PIXELS = 50_000_000
"""Most pixels of one picture: about 150 MB decoded."""
MAX_SCANS = 200
"""Most scans of a progressive JPEG: an honest one has about 10, and thousands take minutes to decode."""

_SCAN_MARKER = b"\xff\xda"


def load_image(source: ImageSource) -> Pixels:
    """One picture as RGB uint8 (H, W, 3), in its original size, upright.

    source: a path, the bytes of a file, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    Raises ImageError for what cannot or must not be read: ImageNotFoundError, ImagePermissionError, ImageArrayError,
    and ImageTypeError for another type.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, "image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "bytes")
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        return _from_bytes(_read_file(path), str(path))
    raise ImageTypeError(
        f"image: got {type(source).__name__}, expected a path, bytes, a PIL image or a uint8 array (H, W, 3)"
    )


def fit_square(image: Pixels, size: int) -> Pixels:
    """The central square of an RGB picture, resampled to (size, size, 3); a picture of that size comes back as it is.

    The filter is Pillow's antialiased bilinear (a triangle as wide as the new pixels), which is also the default of
    torchvision's Resize: figures measured elsewhere at 32 x 32 compare only if the pictures were made the same way.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def _read_file(path: str) -> bytes:
    try:
        # A FIFO or a device would block or never end, so the kind is asked for before the file is opened.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path}: not a regular file, expected a picture")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageNotFoundError(f"{path}: no such file") from error
    except PermissionError as error:
        raise ImagePermissionError(f"{path}: no permission to read it") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{path}: cannot be read ({error})") from error


def _from_bytes(data: bytes, name: str) -> Pixels:
    if not data:
        raise ImageError(f"{name}: empty, expected a picture")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: more than {MAX_BYTES // 2**20} MiB, the most that is read")
    if data.startswith(b"\xff\xd8") and data.count(_SCAN_MARKER) > MAX_SCANS:
        raise ImageError(f"{name}: a JPEG of more than {MAX_SCANS} scans, refused because it takes minutes to decode")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name)
            if image.format == "PNG":
                image.verify()  # the checksums; the image is spent afterwards
            else:
                return _convert(image, name)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _convert(image, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow's errors have no common base: OSError, ValueError, SyntaxError, MemoryError ...
        raise ImageError(f"{name}: not a picture that can be read ({_reason(error)})") from error


def _from_pil(image: Image.Image, name: str) -> Pixels:
    try:
        _check_size(image, name)
        return _convert(image, name)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: the PIL image cannot be decoded ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "expected JPEG, PNG, WebP, GIF or BMP"
    return f"{type(error).__name__}: {str(error)[:120]}" if str(error) else type(error).__name__


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels, more than the {MAX_PIXELS // 10**6} million that are read"
        )
    if width == 0 or height == 0:
        raise ImageError(f"{name}: {width} x {height} pixels, expected at least one")


def _convert(image: Image.Image, name: str) -> Pixels:
    image.load()
    image = _upright(image)
    if image.mode.startswith("I"):
        image = _scale_grey16(image, name)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels, expected 8 or 16 bits a channel")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(ground, picture)
    return np.array(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the pixels, which are good
        return image


def _scale_grey16(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name}: grey values from {values.min()} to {values.max()}, expected 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _from_array(array: NDArray[np.generic]) -> Pixels:
    if array.dtype != np.uint8:
        raise ImageArrayError(
            f"image: got an array of {array.dtype}, expected uint8 in 0..255 (for floats in 0..1: (x * 255).round())"
        )
    channels = array.shape[-1] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        hint = "; move the channels to the end" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageArrayError(f"image: got an array of shape {array.shape}, expected (height, width, 3){hint}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"image: {array.shape} is more than the {MAX_PIXELS // 10**6} million pixels that are read")
    pixels = np.ascontiguousarray(array, dtype=np.uint8)
    if channels == 3:
        return pixels
    return _convert(Image.fromarray(pixels.reshape(pixels.shape[:2]) if channels == 1 else pixels), "image")


def each_image(images: Images) -> Iterable[ImageSource]:
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return iter(images)
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)):
        return [images]
    if not isinstance(images, Iterable):
        raise InputTypeError(f"images: got {type(images).__name__}, expected a picture or an iterable of pictures")
    return images


def load_at(source: ImageSource, index: int) -> Pixels:
    try:
        return load_image(source)
    except ImageError as error:
        error.args = (f"images[{index}]: {error.args[-1]}",)
        raise


def prepare(images: Images, size: int) -> Pixels:
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (size, size, 3):
        return images
    return stack([fit_square(load_at(source, index), size) for index, source in enumerate(each_image(images))], size)


def stack(pictures: Sequence[Pixels], size: int) -> Pixels:
    return np.stack(pictures) if pictures else np.empty((0, size, size, 3), np.uint8)


def to_unit(pixels: Pixels) -> NDArray[np.float32]:
    """uint8 (n, S, S, 3) -> float32 (n, 3, S, S) in [0, 1]"""
    # Turned while they are bytes: a strided array of floats would be copied once more on its way into the graph.
    return np.divide(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), np.float32(255), dtype=np.float32)


def to_pixels(pictures: NDArray[np.float32]) -> Pixels:
    """float32 (n, 3, S, S) in [0, 1] -> uint8 (n, S, S, 3)"""
    scaled = np.clip(pictures, 0, 1)
    scaled *= np.float32(255)
    np.rint(scaled, out=scaled)
    pixels = np.empty((len(scaled), *scaled.shape[2:], scaled.shape[1]), np.uint8)
    np.copyto(pixels, scaled.transpose(0, 2, 3, 1), casting="unsafe")
    return pixels
