"""Crop faces as in the training set of the shipped anime models: a square around each face.

The detector is AnimeFace (libnvxs by nagadomi, Apache 2.0), whose wheel `animeface` holds its weights. The margin was
measured on that training set: of 200 of its faces, pasted on a plain ground, the detector finds 92 %, and the median
box has the center of the picture and 0.727 of its side.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from tqdm import tqdm

from vae_runtime.errors import ImageError
from vae_runtime.figures import image_grid, save_png
from vae_runtime.images import Pixels, fit_square, load_image
from vae_train.data.sources import AVATARS, check_outside, check_source, open_source, summarize
from vae_train.errors import UsageError

MARGIN = 1 / 0.727
"""Side of the square that is cut, in sides of the detected box."""
MIN_SIDE = 64
"""Smallest square that is kept, in pixels of the picture."""
MAX_SIDE = 256
"""Side to which larger squares are reduced: four times what the largest preset is trained on."""

_SCALES = (2048, 1024, 512, 256)  # longest sides of the searched copies: large faces need small ones
_SMALLEST = 96  # shorter sides below this are not searched
_OVERLAP = 0.5  # overlap, as a share of the smaller of two boxes, from which on only one is kept
_THUMBNAIL, _COLUMNS, _ROWS = 64, 16, 12


class Box(NamedTuple):
    """A square in a picture, in pixels."""

    left: float
    top: float
    side: float
    likelihood: float

    def overlap(self, other: Box) -> float:
        """The overlap as a share of the smaller box; 1 if one box contains the other."""
        width = min(self.left + self.side, other.left + other.side) - max(self.left, other.left)
        height = min(self.top + self.side, other.top + other.side) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0) / min(self.side, other.side) ** 2


Detector: TypeAlias = Callable[[Pixels], Sequence[Box]]
"""The faces in a picture (H, W, 3), the most likely first."""


@dataclass
class Crops:
    """What `crop` did."""

    faces: list[Path] = field(default_factory=list)
    """The files that were written."""
    pictures: int = 0
    """Pictures that were read."""
    skipped: list[str] = field(default_factory=list)
    """`name: reason` of each picture without a face, and of each face that was not cut."""
    sheet: Path | None = None
    """The contact sheet: faces, and below them, in gray, pictures without one."""


def crop(
    source: str,
    out: Path,
    detector: Detector | None,
    *,
    min_side: int = MIN_SIDE,
    most: int = 10,
) -> Crops:
    """Cut the faces of a folder, an archive or a Hub dataset into PNG files in `out`; sub-folders are kept.

    detector: `load_detector()`, or None to cut the central square of every picture. min_side: smallest square, in
    pixels. most: faces of one picture, the most likely ones.
    Raises UsageError if `source` cannot be read, or if `out` is not empty or lies inside of it.
    """
    if source == AVATARS:
        raise UsageError("avatars: these are faces already; expected a folder or an archive of pictures")
    check_source(source, option="")
    check_outside(out, [source], "--out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: exists and is not an empty folder; give another one")
    done, shown, unused = Crops(), _Shown(), _Shown()
    pictures = open_source(source)
    for name, read in tqdm(pictures, desc="cropping", unit="img", disable=not sys.stderr.isatty()):
        try:
            picture = load_image(read())
        except (ImageError, OSError) as error:
            done.skipped.append(f"{name}: {str(error).removeprefix('image: ')}")
            continue
        done.pictures += 1
        boxes = detector(picture)[:most] if detector else [_center(picture)]
        squares = [_square(picture, box, MARGIN if detector else 1.0) for box in boxes]
        kept = [square for square in squares if len(square) >= min_side]
        if not kept:
            done.skipped.append(
                f"{name}: no face of at least {min_side} pixels" if squares else f"{name}: no face found"
            )
            unused.add(picture)
        for square in kept:
            done.faces.append(_save(square, out, name))
            shown.add(square)
    done.skipped += pictures.skipped
    if shown.thumbnails:
        sheet = _contact_sheet(shown.thumbnails, unused.thumbnails)
        done.sheet = save_png(sheet, out.with_name(f"{out.name}-contact-sheet.png"))  # not in `out`: it is not a face
    return done


def _contact_sheet(faces: list[Pixels], unused: list[Pixels]) -> Pixels:
    """The faces, and below them, in gray, pictures without one."""
    gray = [np.repeat(each.mean(2, keepdims=True), 3, 2).astype(np.uint8) for each in unused]
    gap = [np.full((_THUMBNAIL, _THUMBNAIL, 3), 255, np.uint8)] * (-len(faces) % _COLUMNS)
    return image_grid(np.stack(faces + gap + gray), _COLUMNS)


def describe(done: Crops, out: Path) -> str:
    """A summary for the user."""
    lines = [f"{len(done.faces)} faces from {done.pictures} pictures: {out}"]
    if done.skipped:
        lines.append(f"skipped: {summarize(done.skipped)}")
    if done.sheet:
        lines.append(f"contact sheet: {done.sheet}")
    return "\n".join(lines)


def load_detector() -> Detector | None:
    """The detector, or None with a sentence on stderr if its package is not installed or does not work here."""
    try:
        from animeface import _nvxs
    except ImportError:
        reason = "no face detector: pip install animeface"
    else:
        if _struct_is_passed_by_address():
            return lambda picture: find_faces(picture, _nvxs.detect)
        reason = "this Python cannot call animeface"
    print(f"{reason}; the central square of each picture is cut instead", file=sys.stderr)
    return None


def find_faces(picture: Pixels, detect: Callable[[Any], Any]) -> list[Box]:
    """The faces in a picture, searched at several scales, the most likely first.

    detect: the native function of animeface. Its Python part hands over the memory of a Pillow image, whose form has
    changed in Pillow 12: it finds nothing there, so what it reads is made here.
    """
    height, width = picture.shape[:2]
    found: list[Box] = []
    for longest in dict.fromkeys(min(scale, max(height, width)) for scale in _SCALES):
        scale = longest / max(height, width)
        shape = round(width * scale), round(height * scale)
        if min(shape) < _SMALLEST:
            break
        small = picture if scale == 1 else np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BOX))
        memory = _PillowImage(small)
        for face in detect(memory):
            left, top, side, _ = face["face_box"]
            found.append(Box(left / scale, top / scale, side / scale, face["likelihood"]))
    kept: list[Box] = []
    for box in sorted(found, key=lambda box: -box.likelihood):
        if all(box.overlap(other) < _OVERLAP for other in kept):
            kept.append(box)
    return kept


class _PillowImage(ctypes.Structure):
    """An RGB image in memory as Pillow 4 had it (`ImagingMemoryInstance`), which animeface was compiled for.

    animeface reads the pointer behind the header of the object that it is given. There an object of ctypes has the
    address of its structure, where an image of Pillow has that of the instance.
    """

    _fields_ = (
        ("mode", ctypes.c_char * 7),
        ("type", ctypes.c_int),
        ("depth", ctypes.c_int),
        ("bands", ctypes.c_int),
        ("xsize", ctypes.c_int),
        ("ysize", ctypes.c_int),
        ("palette", ctypes.c_void_p),
        ("image8", ctypes.c_void_p),
        ("image32", ctypes.c_void_p),
        ("image", ctypes.c_void_p),
        ("block", ctypes.c_void_p),
        ("pixelsize", ctypes.c_int),
        ("linesize", ctypes.c_int),
        ("destroy", ctypes.c_void_p),
    )

    def __init__(self, picture: Pixels) -> None:
        height, width = picture.shape[:2]
        # Four bytes a pixel, and a table of rows; both live as long as this object.
        self.pixels = np.dstack([picture, np.full((height, width), 255, np.uint8)])
        start, step = self.pixels.ctypes.data, self.pixels.strides[0]
        self.rows = (ctypes.c_void_p * height)(*(start + row * step for row in range(height)))
        super().__init__(b"RGB", 0, 0, 3, width, height, image=ctypes.addressof(self.rows), pixelsize=4, linesize=step)


def _struct_is_passed_by_address() -> bool:
    probe = _PillowImage(np.zeros((1, 1, 3), np.uint8))
    return ctypes.c_void_p.from_address(id(probe) + object.__basicsize__).value == ctypes.addressof(probe)


def _center(picture: Pixels) -> Box:
    height, width = picture.shape[:2]
    side = min(height, width)
    return Box((width - side) / 2, (height - side) / 2, side, 1.0)


def _square(picture: Pixels, box: Box, margin: float) -> Pixels:
    """The square around a box, moved and reduced so that it lies inside the picture."""
    height, width = picture.shape[:2]
    side = min(round(box.side * margin), height, width)
    left = min(max(round(box.left + (box.side - side) / 2), 0), width - side)
    top = min(max(round(box.top + (box.side - side) / 2), 0), height - side)
    return picture[top : top + side, left : left + side]


def _save(square: Pixels, out: Path, name: str) -> Path:
    """Write a face into the sub-folder of its picture, under a name that is not taken."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/").replace(":", "_")).parts if part not in ("/", "..")]
    folder = out.joinpath(*parts[:-1])
    folder.mkdir(parents=True, exist_ok=True)
    stem, number = PurePosixPath(parts[-1]).stem, 1
    path = folder / f"{stem}.png"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.png"
    return save_png(fit_square(square, min(len(square), MAX_SIDE)), path)


class _Shown:
    """The first pictures for a contact sheet."""

    def __init__(self) -> None:
        self.thumbnails: list[Pixels] = []

    def add(self, picture: Pixels) -> None:
        if len(self.thumbnails) < _COLUMNS * _ROWS:
            self.thumbnails.append(fit_square(picture, _THUMBNAIL))
