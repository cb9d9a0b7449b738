"""Draws docs/contact-sheet.png: python docs/contact_sheet.py BASE CLASSIC AVATARS, three exported folders.

The faces that go in are avatars of a seed that nobody trained with; all others are the models' own. No picture of the
anime data is shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vae_runtime import VAE
from vae_runtime.figures import image_grid, save_png
from vae_runtime.images import BACKGROUND
from vae_runtime.latent import interpolate
from vae_train.data.avatars import draw_many

COLUMNS, SCALE, GAP, LEFT, LINE, SEED = 10, 1, 4, 150, 26, 1_000_004
INK = (34, 34, 34)


def edits(vae: VAE, z, names):
    strengths = np.linspace(-3, 3, COLUMNS)[:, None]
    return np.concatenate([vae.decode(z[row] + strengths * vae.direction(name)) for row, name in enumerate(names)])


def rows_of(base: VAE, classic: VAE, avatars: VAE):
    """(label, uint8 (n, S, S, 3)): the rows of the sheet."""
    z = base.prior.sample(3 * COLUMNS, rng=1)
    cartoon = avatars.prior.sample(2 * COLUMNS, rng=1)
    faces = np.stack([face for face, _ in draw_many(COLUMNS, 64, SEED, processes=1)])
    mu = avatars.encode(faces)[0]
    ways = np.concatenate([interpolate(z[2 * i], z[2 * i + 1], COLUMNS) for i in range(2)])
    return [
        (f"{base.config.name}\nsamples", base.decode(z)),
        (f"{classic.config.name}\nsamples", classic.sample(2 * COLUMNS, rng=1)),
        (f"{base.config.name}\ninterpolations", base.decode(ways)),
        (f"{base.config.name}\nhair-blonde,\nhair-blue", edits(base, z, ["hair-blonde", "hair-blue"])),
        ("originals", faces),
        (f"{avatars.config.name}\nreconstructions", avatars.reconstruct(faces)),
        (f"{avatars.config.name}\nsamples", avatars.decode(cartoon)),
        (f"{avatars.config.name}\ninterpolation", avatars.decode(interpolate(mu[0], mu[1], COLUMNS))),
        (f"{avatars.config.name}\nglasses, beard,\nhair-pink", edits(avatars, mu, ["glasses", "beard", "hair-pink"])),
    ]


def main(arguments: list[str]) -> None:
    rows = rows_of(*(VAE.load(Path(folder), device="cpu") for folder in arguments))
    grids = [(label, image_grid(images, COLUMNS, scale=SCALE, gap=GAP)) for label, images in rows]
    height = sum(len(grid) + 2 * GAP for _, grid in grids)
    sheet = Image.new("RGB", (LEFT + grids[0][1].shape[1] + GAP, height), BACKGROUND)
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(15), GAP
    for label, grid in grids:
        sheet.paste(Image.fromarray(grid), (LEFT, top))
        pen.multiline_text((10, top + 10), label, INK, font)
        top += len(grid) + 2 * GAP
    save_png(np.asarray(sheet), Path(__file__).with_name("contact-sheet.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
