"""Pictures for the trainer's tests: smooth random blobs, few and quickly learned."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def write_faces(path: Path, count: int, side: int = 32) -> Path:
    """A .zip of `count` pictures, the same for the same arguments."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
            buffer = io.BytesIO()
            small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
            archive.writestr(f"{index}.png", buffer.getvalue())
    return path
