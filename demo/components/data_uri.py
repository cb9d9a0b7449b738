"""Pictures as data URIs, which is how they travel. What a client sends is bounded before it is decoded."""

from __future__ import annotations

import base64
import io
import re
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from vae_runtime import ImageError, load_image
from vae_runtime.image_bytes import PNG_SIGNATURE, clean_png
from vae_runtime.images import FORMATS, Pixels, fit_square, load_mask, load_square

MAX_FACE_SIDE = 512
"""Pixels. Larger pictures are reduced to this as soon as they are decoded; a face in a grid may not be larger."""
MAX_FACE_CHARACTERS = 2_000_000
"""Longest data URI of a face: 512 x 512 random pixels as PNG take 1.05 million."""
MAX_UPLOAD_BYTES = 8 * 2**20

_PNG = "data:image/png;base64,"
_ANY = re.compile(r"data:(?:image/[\w.+-]+|application/octet-stream);base64,", re.ASCII)
_LARGE = 4_000_000
_one_large_picture = threading.Lock()


def to_uri(picture: Pixels) -> str:
    """A picture (H, W, 3) as a PNG data URI, lossless."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=3)
    return _PNG + base64.b64encode(file.getvalue()).decode()


def from_uri(text: object) -> Pixels:
    """The face (H, W, 3) of a PNG data URI; ImageError for anything else, or a side of more than 512 pixels."""
    return load_image(_face_bytes(text))


def mask_from_uri(text: object) -> NDArray[np.bool_]:
    """The mask (H, W) of a PNG data URI: True where it is opaque or, where all of it is, where it is light."""
    return load_mask(_face_bytes(text))


def picture_from_uri(text: object) -> Pixels:
    """The picture of a data URI in any format that the runtime reads, at most 8 MiB: see `read_picture`."""
    match = _ANY.match(text) if isinstance(text, str) else None
    if match is None or not isinstance(text, str):
        raise ImageError("picture: expected a data URI of an image")
    if len(text) > MAX_UPLOAD_BYTES * 4 // 3 + 100:
        raise ImageError(f"picture: larger than {MAX_UPLOAD_BYTES // 2**20} MB; make it smaller first")
    return read_picture(_decode(text[match.end() :]))


def read_picture(source: bytes | Path) -> Pixels:
    """A picture from a visitor as its central square, at most 512 x 512.

    The original lives in memory no longer than this takes, and only one large original at a time.
    """
    data = source.read_bytes() if isinstance(source, Path) else source
    with _one_large_picture if _pixels(data) >= _LARGE else nullcontext():
        return load_square(data, MAX_FACE_SIDE)


def holes_from_uri(text: object, side: int) -> NDArray[np.bool_]:
    """Where the picture that `picture_from_uri` has read is transparent, (side, side); nowhere in one without alpha.

    Nowhere in a large picture, too: the page's script sends small ones, and no large one is decoded twice.
    """
    none = np.zeros((side, side), np.bool_)
    match = _ANY.match(text) if isinstance(text, str) else None
    if match is None or not isinstance(text, str):
        return none
    try:
        with _opened(_decode(text[match.end() :])) as image:
            if max(image.size) > MAX_FACE_SIDE or not image.has_transparency_data:
                return none
            alpha = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3]
    except Exception as error:  # Pillow's errors share no base class
        raise ImageError("picture: its transparency cannot be read") from error
    return np.asarray(fit_square(alpha[..., None].repeat(3, axis=2), side)[..., 0] < 128)


def _face_bytes(text: object) -> bytes:
    if not isinstance(text, str) or not text.startswith(_PNG) or len(text) > MAX_FACE_CHARACTERS:
        raise ImageError("face: expected a PNG data URI")
    data = _decode(text.removeprefix(_PNG))
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            width, height = image.size
    except Exception as error:  # Pillow's errors share no base class
        raise ImageError("face: not a PNG that can be read") from error
    if max(width, height) > MAX_FACE_SIDE:
        raise ImageError(f"face: {width} x {height} pixels, expected at most {MAX_FACE_SIDE} x {MAX_FACE_SIDE}")
    return data


def _opened(data: bytes) -> ImageFile.ImageFile:
    """A picture whose header is read; of a PNG without the texts that Pillow fails at and `load_image` leaves out."""
    return Image.open(io.BytesIO(clean_png(data).data if data.startswith(PNG_SIGNATURE) else data), formats=FORMATS)


def _pixels(data: bytes) -> int:
    """What the header says; 0 for what cannot be opened, which `load_image` refuses with a sentence."""
    try:
        with _opened(data) as image:
            return image.width * image.height
    except Exception:  # the same errors come from load_image
        return 0


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ImageError("picture: not base64") from error
