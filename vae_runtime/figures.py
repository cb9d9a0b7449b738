"""Pictures out: contact sheets, PNG files and animations (GIF, WebP, WebM)."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vae_runtime.checks import check_count, check_number
from vae_runtime.errors import InputError, RuntimeMissingError
from vae_runtime.files import write_atomically
from vae_runtime.images import BACKGROUND, Pixels

ANIMATIONS = (".gif", ".webp", ".webm")
"""File name endings that `save_animation` writes."""
MAX_SIDES = {".png": 2**31 - 1, ".gif": 65_535, ".webp": 16_383, ".webm": 16_384}
"""Largest height and width in pixels, by file name ending."""
MAX_BYTES = 2 * 2**30
"""Most bytes of pixels of a sheet, or of all frames of an animation."""
_PICTURE = "(height, width, 3)"


def sheet_shape(
    count: int, height: int, width: int, columns: int | None = None, *, scale: int = 1, gap: int = 2
) -> tuple[int, int]:
    """Height and width of the sheet that `image_grid` makes of `count` pictures (height, width)."""
    for name, value, low in (("columns", columns or 1, 1), ("scale", scale, 1), ("gap", gap, 0)):
        check_count(value, name, low, max(MAX_SIDES.values()))
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    return rows * (height * scale + gap) - gap, columns * (width * scale + gap) - gap


def check_figure(path: str | os.PathLike[str], height: int, width: int, frames: int = 1) -> None:
    """Raise InputError if a figure is too large for its format or for memory; to call before the work starts."""
    limit = MAX_SIDES.get(Path(path).suffix.lower(), max(MAX_SIDES.values()))
    if max(height, width) > limit:
        raise InputError(
            f"{path}: {width} x {height} pixels, expected at most {limit} on each side for this format; "
            "reduce the scale or the number of pictures"
        )
    _check_bytes(f"{path}", height, width, frames)


def _check_bytes(name: str, height: int, width: int, frames: int) -> None:
    size = frames * height * width * 3
    if size > MAX_BYTES:
        shown = f"{frames} frames of {width} x {height}" if frames > 1 else f"{width} x {height}"
        raise InputError(
            f"{name}: {shown} pixels take {size / 2**30:.1f} GiB, expected at most {MAX_BYTES / 2**30:g}; "
            "reduce the scale or the number of pictures"
        )


def _check_pixels(pixels: object, name: str, shape: str) -> None:
    """Raise InputError unless this is a uint8 array of the shape, as `_PICTURE`, and not empty."""
    array = pixels if isinstance(pixels, np.ndarray) else None
    fits = array is not None and array.ndim == shape.count(",") + 1 and array.shape[-1] == 3 and array.size > 0
    if array is None or array.dtype != np.uint8 or not fits:
        got = type(pixels).__name__ if array is None else f"{array.dtype} {array.shape}"
        raise InputError(f"{name}: got {got}, expected a uint8 array {shape}")


def _check_frames(frames: object, path: str | os.PathLike[str]) -> None:
    if not isinstance(frames, (Sequence, np.ndarray)):
        raise InputError(f"frames: got {type(frames).__name__}, expected an array or a list of pictures")
    if len(frames) == 0:
        raise InputError(f"{path}: got no frames, expected at least one")
    for index, frame in enumerate(frames):
        _check_pixels(frame, f"frames[{index}]", _PICTURE)
        if frame.shape != frames[0].shape:
            raise InputError(f"frames[{index}]: got {frame.shape}, expected {frames[0].shape} as the first frame")


def image_grid(images: Pixels, columns: int | None = None, *, scale: int = 1, gap: int = 2) -> Pixels:
    """Pictures (n, H, W, 3), n >= 1, as one sheet in reading order on `BACKGROUND`, uint8 (height, width, 3).

    columns: pictures a row (the nearest to a square if not given). scale: how many times as wide and high each picture
    becomes, by Lanczos resampling, as the demo shows faces. gap: pixels between pictures, after scaling. At most
    `MAX_BYTES`.
    """
    _check_pixels(images, "images", "(n, height, width, 3) with n >= 1")
    shape = sheet_shape(len(images), images.shape[1], images.shape[2], columns, scale=scale, gap=gap)
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = images.shape[1] * scale, images.shape[2] * scale
    _check_bytes("images", *shape, 1)
    sheet = np.empty((*shape, 3), np.uint8)
    sheet[:] = BACKGROUND
    for index, picture in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = enlarge(picture, height, width)
    return sheet


def enlarge(picture: Pixels, height: int, width: int) -> Pixels:
    """One picture (H, W, 3) at (height, width, 3), by Lanczos: sharper than bicubic, without the squares of pixels."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def save_png(image: Pixels, path: str | os.PathLike[str]) -> Path:
    """Write one RGB picture (H, W, 3) as a lossless PNG, all or nothing, and return its path.

    InputError for a name that does not end in .png, or what is not such a picture.
    """
    _check_pixels(image, "image", _PICTURE)
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"{path}: expected a name that ends in .png")
    check_figure(path, *image.shape[:2])
    return write_atomically(path, _encode(Image.fromarray(image), "PNG"))


def save_animation(frames: Sequence[Pixels] | Pixels, path: str | os.PathLike[str], fps: float = 12.0) -> Path:
    """Write frames (n, H, W, 3), n >= 1, as an endless GIF, a lossless WebP or a WebM, by the ending of `path`.

    fps: frames a second, 0.1 to 100. A WebM (VP9, lossy, no sound) needs OpenCV. Returns the path. InputError for
    frames that are not all uint8 of one size, or more than the format or `MAX_BYTES` allows: see `check_figure`.
    """
    kind = Path(path).suffix.lower()
    if kind not in ANIMATIONS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(ANIMATIONS)}")
    _check_frames(frames, path)
    check_number(fps, "fps", 0.1, 100)
    check_figure(path, frames[0].shape[0], frames[0].shape[1], len(frames))
    if kind == ".webm":
        return _save_webm(frames, Path(path), fps)
    pictures = [Image.fromarray(frame) for frame in frames]
    data = _encode(pictures[0], {".gif": "GIF", ".webp": "WEBP"}[kind], pictures[1:], round(1000 / fps))
    return write_atomically(path, data)


def _save_webm(frames: Sequence[Pixels] | Pixels, path: Path, fps: float) -> Path:
    try:
        import cv2
    except ImportError as error:
        raise RuntimeMissingError(f"{path}: a WebM needs OpenCV; pip install opencv-python-headless") from error
    height, width = (side + side % 2 for side in frames[0].shape[:2])  # VP9 halves its colors: even sides only
    with tempfile.TemporaryDirectory() as folder:  # not beside `path`: OpenCV takes no names that are not UTF-8
        temporary = Path(folder) / "video.webm"
        code = cv2.VideoWriter.fourcc(*"VP90")
        writer = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, code, fps, (width, height))
        if not writer.isOpened():
            raise RuntimeMissingError(f"{path}: this OpenCV cannot write VP9; take .webp, or another OpenCV")
        for frame in frames:
            edges = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            writer.write(np.ascontiguousarray(np.pad(frame, edges, "edge")[..., ::-1]))
        writer.release()
        written = _count_frames(cv2.VideoCapture(str(temporary), cv2.CAP_FFMPEG))
        if written != len(frames):  # OpenCV says nothing where the disk is full
            raise OSError(f"{path}: {written} of {len(frames)} frames were written; make room in {folder}")
        return write_atomically(path, temporary.read_bytes())


def _count_frames(video: Any) -> int:
    count = 0
    while video.grab():
        count += 1
    video.release()
    return count


def _encode(image: Image.Image, kind: str, rest: Sequence[Image.Image] = (), duration: int = 0) -> bytes:
    buffer = io.BytesIO()
    if kind == "PNG":
        image.save(buffer, "PNG", optimize=True)
    elif kind == "GIF":
        image.save(buffer, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    else:
        image.save(buffer, kind, save_all=True, append_images=rest, duration=duration, loop=0, lossless=True)
    return buffer.getvalue()
