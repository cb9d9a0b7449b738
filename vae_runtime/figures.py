"""Pictures out: contact sheets, PNG files and animations (GIF, WebP, WebM)."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vae_runtime.errors import InputError, RuntimeMissingError
from vae_runtime.files import write_atomically
from vae_runtime.images import BACKGROUND, Pixels

ANIMATIONS = (".gif", ".webp", ".webm")
"""File name endings that `save_animation` writes."""


def image_grid(images: Pixels, columns: int | None = None, *, scale: int = 1, gap: int = 2) -> Pixels:
    """Pictures (n, H, W, 3), n >= 1, as one sheet in reading order on `BACKGROUND`, uint8 (height, width, 3).

    columns: pictures a row (the nearest to a square if not given). scale: each pixel becomes scale x scale, so that
    small faces stay sharp on a screen. gap: pixels between pictures, after scaling.
    """
    if images.ndim != 4 or len(images) == 0 or images.dtype != np.uint8:
        raise InputError(f"images: got {images.dtype} {images.shape}, expected uint8 (n, height, width, 3) with n >= 1")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = large.shape[1] + gap, large.shape[2] + gap
    sheet = np.empty((rows * height - gap, columns * width - gap, 3), np.uint8)
    sheet[:] = BACKGROUND
    for index, picture in enumerate(large):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height - gap, left : left + width - gap] = picture
    return sheet


def save_png(image: Pixels, path: str | os.PathLike[str]) -> Path:
    """Write one RGB picture (H, W, 3) as a lossless PNG and return its path."""
    return write_atomically(path, _encode(Image.fromarray(image), "PNG"))


def save_animation(frames: Sequence[Pixels] | Pixels, path: str | os.PathLike[str], fps: float = 12.0) -> Path:
    """Write frames (n, H, W, 3), n >= 1, as an endless GIF, a lossless WebP or a WebM, by the ending of `path`.

    fps: frames a second, 0.1 to 100. A WebM (VP9, lossy, no sound) needs OpenCV. Returns the path.
    """
    kind = Path(path).suffix.lower()
    if kind not in ANIMATIONS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(ANIMATIONS)}")
    if len(frames) == 0:
        raise InputError(f"{path}: got no frames, expected at least one")
    if not 0.1 <= fps <= 100:
        raise InputError(f"fps: got {fps}, expected 0.1 to 100")
    if kind == ".webm":
        return _save_webm(frames, Path(path), fps)
    pictures = [Image.fromarray(frame) for frame in frames]
    return write_atomically(
        path, _encode(pictures[0], {".gif": "GIF", ".webp": "WEBP"}[kind], pictures[1:], round(1000 / fps))
    )


def _save_webm(frames: Sequence[Pixels] | Pixels, path: Path, fps: float) -> Path:
    try:
        import cv2
    except ImportError as error:
        raise RuntimeMissingError(f"{path}: a WebM needs OpenCV; pip install opencv-python-headless") from error
    height, width = (side + side % 2 for side in frames[0].shape[:2])  # VP9 halves its colours: even sides only
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / "video.webm"
        code = cv2.VideoWriter.fourcc(*"VP90")
        writer = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, code, fps, (width, height))
        if not writer.isOpened():
            raise RuntimeMissingError(f"{path}: this OpenCV cannot write VP9; take .webp, or another OpenCV")
        for frame in frames:
            edges = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            writer.write(np.ascontiguousarray(np.pad(frame, edges, "edge")[..., ::-1]))
        writer.release()
        temporary.replace(path)
    return path


def _encode(image: Image.Image, kind: str, rest: Sequence[Image.Image] = (), duration: int = 0) -> bytes:
    buffer = io.BytesIO()
    if kind == "PNG":
        image.save(buffer, "PNG", optimize=True)
    elif kind == "GIF":
        image.save(buffer, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    else:
        image.save(buffer, kind, save_all=True, append_images=rest, duration=duration, loop=0, lossless=True)
    return buffer.getvalue()
