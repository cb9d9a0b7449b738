"""The pictures that a person looks at after training. They take arrays: torch and ONNX Runtime draw alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vae_runtime.figures import image_grid, save_png
from vae_runtime.images import BACKGROUND, Pixels
from vae_runtime.latent import interpolate
from vae_runtime.model import VAE
from vae_runtime.prior import sample_prior
from vae_train.data.faces import Faces

Encode: TypeAlias = Callable[[Pixels], NDArray[np.float32]]
"""uint8 (n, S, S, 3) -> mu (n, latent_dim)"""
Decode: TypeAlias = Callable[[NDArray[np.float32]], Pixels]
"""z (n, latent_dim) -> uint8 (n, S, S, 3)"""

FIGURES = "figures"
"""The folder of a run that they lie in."""

_SHOWN = 40
_FACE = 96  # screen pixels that a face takes at least: small ones are enlarged by a whole number, so they stay sharp
_COLUMNS = 10
_PAIRS = 6
_CARD_SEED = 1_000_003  # of the avatars on a card: nobody trains with it by chance
_STRENGTHS = np.linspace(-3, 3, 9)
_MARGIN = 14
_GAP = 4
_INK, _GREY = (34, 34, 34), (120, 120, 120)
_BLUE, _ORANGE = "#2b6cb0", "#dd6b20"


def draw_faces(folder: Path, faces: Pixels, encode: Encode, decode: Decode, caption: str) -> None:
    """real_images, reconstructions, prior_samples and interpolations (.png) into `folder`.

    faces: uint8 (n, S, S, 3), n >= 1, pictures that were not trained on. caption: what made them, for the small print.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = min(len(faces), 2 * _COLUMNS)
    mu = encode(faces[:count])
    columns = min(count, _COLUMNS)

    _sheet(folder / "real_images.png", faces[:_SHOWN], _COLUMNS, "Real images", "held out: never trained on")
    rows, labels = [], []
    for start in range(0, count, columns):
        part = slice(start, start + columns)
        rows += [_fill(faces[part], columns), _fill(decode(mu[part]), columns)]
        labels += ["original", "decode(mu)"]
    _sheet(folder / "reconstructions.png", np.concatenate(rows), columns, "Reconstructions", caption, labels)

    z = sample_prior(_SHOWN, mu.shape[1], rng=0)
    _sheet(folder / "prior_samples.png", decode(z), _COLUMNS, "Prior samples, z ~ N(0, I)", caption)

    pairs = [(2 * i % count, (2 * i + 1) % count) for i in range(min(_PAIRS, max(1, count // 2)))]
    strips = [_strip(faces[a], faces[b], decode(interpolate(mu[a], mu[b], 8))) for a, b in pairs]
    title = "Interpolations between two real images (first and last)"
    _sheet(folder / "interpolations.png", np.concatenate(strips), _COLUMNS, title, caption)


def draw_exported(run: Path, exported: Path, faces: Faces) -> None:
    """Draw the pictures of a finished run once more, from its exported graphs and without torch."""
    vae = VAE.load(exported, device="cpu")
    held_out = np.flatnonzero(faces.held_out())[:_SHOWN]
    images = np.ascontiguousarray(faces.pixels[held_out].transpose(0, 2, 3, 1))
    size, epochs = vae.image_size, vae.config.metrics["epochs"]
    caption = f"{vae.config.preset} {size}x{size}, {epochs:g} epochs, drawn by ONNX Runtime"
    draw_faces(run / FIGURES, images, lambda pictures: vae.encode(pictures)[0], vae.decode, caption)


def draw_card(folder: Path) -> None:
    """The pictures of a model card into the exported model `folder`: samples, interpolations, reconstructions, edits.

    No picture of the training data is among them: what is reconstructed are avatars of a seed of their own, and all
    else begins with a sample.
    """
    from vae_train.data.avatars import (
        draw_many,  # imports its drawing libraries, which the training itself does without
    )

    vae = VAE.load(folder, device="cpu")
    z = vae.prior.sample(_SHOWN, rng=0)
    caption = f"{vae.config.name}, drawn by ONNX Runtime"
    _sheet(folder / "samples.png", vae.decode(z), _COLUMNS, "Faces drawn from the prior", caption)

    ways = [vae.decode(interpolate(z[2 * i], z[2 * i + 1], _COLUMNS)) for i in range(_PAIRS)]
    _sheet(folder / "interpolations.png", np.concatenate(ways), _COLUMNS, "From one sample to another", caption)

    avatars = np.stack([face for face, _ in draw_many(_COLUMNS, vae.image_size, _CARD_SEED, processes=1)])
    rows = np.concatenate([avatars, vae.reconstruct(avatars)])
    labels = ["original", "decode(mu)"]
    _sheet(folder / "reconstructions.png", rows, _COLUMNS, "Avatars, never trained on", caption, labels)

    names = shown_directions(vae)
    rows = np.concatenate(
        [vae.decode(z[row] + _STRENGTHS[:, None] * vae.direction(name)) for row, name in enumerate(names)]
    )
    title = f"Edits, from {_STRENGTHS[0]:g} to {_STRENGTHS[-1]:g} standard deviations"
    _sheet(folder / "edits.png", rows, len(_STRENGTHS), title, caption, names)


def shown_directions(vae: VAE) -> list[str]:
    """Up to eight directions of a model: named attributes before principal ones, single latents if it has none."""
    names = vae.directions.names if vae.directions else tuple(f"z{index}" for index in range(min(8, vae.latent_dim)))
    return sorted(names, key=lambda name: name.startswith("pca-"))[:8]


def draw_curve(folder: Path, history: list[dict[str, Any]], caption: str) -> None:
    """training_curve.png: the negative ELBO by epoch, train and held-out. history: the lines of metrics.jsonl."""
    keys = {"train_negative_elbo", "held_out_negative_elbo"}
    history = [record for record in history if keys <= record.keys()]
    if not history:
        return
    folder.mkdir(parents=True, exist_ok=True)
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, color in (("train", "train", _BLUE), ("held_out", "held-out", _ORANGE)):
        values = [record[f"{key}_negative_elbo"] for record in history]
        axes.plot(epochs, values, color=color, label=f"{label}, last {values[-1]:.2f}", marker="o", markersize=3)
    axes.set_title(f"Negative ELBO, {caption}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats per image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    canvas.draw()
    save_png(np.asarray(canvas.buffer_rgba())[..., :3].copy(), folder / "training_curve.png")


def draw_rows(path: Path, rows: dict[str, Pixels], title: str, caption: str) -> None:
    """Pictures (n, S, S, 3), of the same n for each row, one below the other, each row with its name."""
    columns = max(map(len, rows.values()))
    _sheet(path, np.concatenate(list(rows.values())), columns, title, caption, list(rows))


def _fill(images: Pixels, count: int) -> Pixels:
    """A row of `count` pictures: blank ones at its end."""
    blank = np.full((count - len(images), *images.shape[1:]), BACKGROUND[0], np.uint8)
    return np.concatenate([images, blank])


def _strip(first: Pixels, last: Pixels, between: Pixels) -> Pixels:
    return np.concatenate([first[None], between, last[None]])


def _sheet(path: Path, images: Pixels, columns: int, title: str, caption: str, labels: list[str] | None = None) -> None:
    """A titled grid, with a label at the left of each row if there are labels."""
    scale = max(1, math.ceil(_FACE / images.shape[1]))
    grid = image_grid(images, min(columns, len(images)), scale=scale, gap=_GAP)
    big, small = ImageFont.load_default(22), ImageFont.load_default(15)
    left = _MARGIN + (max(int(small.getlength(label)) for label in labels) + 10 if labels else 0)
    top = 66
    width = max(left + grid.shape[1] + _MARGIN, 2 * _MARGIN + int(big.getlength(title)))
    sheet = Image.new("RGB", (width, top + grid.shape[0] + _MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 10), title, _INK, big)
    pen.text((_MARGIN, 38), caption, _GREY, small)
    sheet.paste(Image.fromarray(grid), (left, top))
    step = images.shape[1] * scale + _GAP
    for row, label in enumerate(labels or []):
        pen.text((_MARGIN, top + row * step + step // 2), label, _GREY, small, anchor="lm")
    save_png(np.asarray(sheet), path)
