"""The built-in source `avatars`: cartoon faces drawn by python_avatars (MIT) and rasterized by resvg, with attributes.

Face `i` depends only on the seed and on `i`, so a larger set starts with the smaller one, and the number of processes
does not matter. The parts are listed here, so that a new release of the library changes no face.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import TypeAlias

import python_avatars as pa
import resvg_py

from vae_runtime.images import Pixels, fit_square, load_image
from vae_train.errors import DataError

Traits: TypeAlias = dict[str, str]

VERSION = 1
"""Part of the data's digest; raise it whenever the same seed draws another face."""

# The square of the 264 x 280 canvas that is kept: the head fills it; wide hair is cut, as in crops of real drawings.
_VIEW = (30, 12, 204)
_PROCESS_CHUNK = 32
_SERIAL_BELOW = 256

_HAIR = (
    "NONE BIG_HAIR BOB BUN CAESAR_SIDE_PART CURLY CURVY FRO LONG_NOT_TOO_LONG MIA_WALLACE SHAGGY_MULLET SHORT_CURLY "
    "SHORT_FLAT SHORT_WAVED STRAIGHT_1 STRAIGHT_2 STRAIGHT_STRAND BRAIDS MOHAWK PIXIE POMPADOUR QUIFF LOOSE_HAIR WILD"
).split()
_HATS = "HAT HIJAB TURBAN WINTER_HAT_1 WINTER_HAT_2 WINTER_HAT_3".split()
_HAIR_COLORS = {
    "BLACK": "#2C1B18",
    "BROWN": "#724133",
    "BLONDE": "#E8C25A",
    "RED": "#C93305",
    "SILVER": "#E8E1E1",
    "PINK": "#F27CA2",
    "BLUE": "#3F7FD1",
    "GREEN": "#4FA774",
    "VIOLET": "#8257B8",
}
_SKINS = "PALE LIGHT BROWN DARK_BROWN BLACK".split()
_EYES = "CLOSED CRY DEFAULT EYE_ROLL HAPPY HEART SIDE SQUINT SURPRISED WINK".split()
_EYEBROWS = (
    "ANGRY_NATURAL ANGRY DEFAULT_NATURAL DEFAULT FLAT_NATURAL FROWN_NATURAL RAISED_EXCITED_NATURAL RAISED_EXCITED "
    "SAD_CONCERNED_NATURAL SAD_CONCERNED UP_DOWN_NATURAL UP_DOWN"
).split()
_NOSES = "DEFAULT SMALL WIDE".split()
_MOUTHS = "CONCERNED DEFAULT DISBELIEF EATING GRIMACE SAD SCREAM_OPEN SERIOUS SMILE TONGUE TWINKLE BIG_SMILE".split()
_BEARDS = "BEARD_LIGHT BEARD_MAGESTIC BEARD_MEDIUM MOUSTACHE_FANCY MOUSTACHE_MAGNUM".split()
_GLASSES = "KURT PRESCRIPTION_1 PRESCRIPTION_2 ROUND SUNGLASSES WAYFARERS".split()
_CLOTHES = (
    "BLAZER_SHIRT BLAZER_SWEATER COLLAR_SWEATER HOODIE OVERALL SHIRT_CREW_NECK SHIRT_SCOOP_NECK SHIRT_V_NECK"
).split()
_CLOTHES_COLORS = (
    "BLACK BLUE_01 BLUE_02 BLUE_03 GRAY_01 GRAY_02 HEATHER PASTEL_BLUE PASTEL_GREEN PASTEL_ORANGE PASTEL_YELLOW PINK "
    "RED WHITE"
).split()
_BACKGROUND = "#CFE8FC"  # light, so that white hair and hats still stand out


def choose_attributes(seed: int, index: int) -> Traits:
    """The attributes of face `index`: hair, hat, hair_color, skin, glasses, beard, mouth, clothes, ..."""
    # A string seeds `random` through SHA-512: the same on every machine and Python version.
    rng = random.Random(f"{VERSION}/{seed}/{index}")
    hat = rng.choice(_HATS) if rng.random() < 0.15 else "NONE"
    return {
        "hair": "NONE" if hat != "NONE" else rng.choice(_HAIR),
        "hat": hat,
        "hair_color": rng.choice(sorted(_HAIR_COLORS)),
        "skin": rng.choice(_SKINS),
        "eyes": "DEFAULT" if rng.random() < 0.4 else rng.choice(_EYES),
        "eyebrows": rng.choice(_EYEBROWS),
        "nose": rng.choice(_NOSES),
        "mouth": rng.choice(_MOUTHS),
        "beard": rng.choice(_BEARDS) if rng.random() < 0.3 else "NONE",
        "glasses": rng.choice(_GLASSES) if rng.random() < 0.35 else "NONE",
        "clothes": rng.choice(_CLOTHES),
        "clothes_color": rng.choice(_CLOTHES_COLORS),
    }


def draw_svg(attributes: Traits) -> str:
    """The SVG text of a face with these attributes, cut to the head."""
    top = pa.HatType[attributes["hat"]] if attributes["hat"] != "NONE" else pa.HairType[attributes["hair"]]
    hair_color = _HAIR_COLORS[attributes["hair_color"]]
    clothes_color = pa.ClothingColor[attributes["clothes_color"]]
    svg: str = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=top,
        hat_color=clothes_color,
        eyebrows=pa.EyebrowType[attributes["eyebrows"]],
        eyes=pa.EyeType[attributes["eyes"]],
        nose=pa.NoseType[attributes["nose"]],
        mouth=pa.MouthType[attributes["mouth"]],
        facial_hair=pa.FacialHairType[attributes["beard"]],
        skin_color=pa.SkinColor[attributes["skin"]],
        hair_color=hair_color,
        facial_hair_color=hair_color,
        accessory=pa.AccessoryType[attributes["glasses"]],
        clothing=pa.ClothingType[attributes["clothes"]],
        clothing_color=clothes_color,
        shirt_graphic=pa.ClothingGraphic.NONE,
    ).render()
    left, top_edge, side = _VIEW
    head, _, rest = svg.partition(">")
    head = head.replace('width="264px" height="280px"', f'width="{side}px" height="{side}px"')
    return head.replace('viewBox="0 0 264 280"', f'viewBox="{left} {top_edge} {side} {side}"') + ">" + rest


def draw(index: int, size: int, seed: int) -> tuple[Pixels, Traits]:
    """Face `index`, uint8 (size, size, 3), and its attributes."""
    attributes = choose_attributes(seed, index)
    png = resvg_py.svg_to_bytes(
        svg_string=draw_svg(attributes), width=size, background=_BACKGROUND, skip_system_fonts=True
    )
    return fit_square(load_image(bytes(png)), size), attributes


def draw_many(count: int, size: int, seed: int, processes: int | None = None) -> Iterator[tuple[Pixels, Traits]]:
    """Faces 0 to count - 1 in order, drawn by `processes` processes (default: one for each core).

    DataError if one of them stops, as all do that import a script without `if __name__ == "__main__":`.
    """
    one = partial(draw, size=size, seed=seed)
    workers = processes or len(_usable_cores())
    if workers == 1 or count < _SERIAL_BELOW:
        yield from map(one, range(count))
        return
    # Spawned, not forked: the parent may run threads of torch and of ONNX Runtime.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from islice(pool.map(one, range(count), chunksize=_PROCESS_CHUNK), count)
        except BrokenProcessPool as error:
            message = 'a process that draws avatars has stopped; does the script say `if __name__ == "__main__":`?'
            raise DataError(message) from error


def _usable_cores() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)
