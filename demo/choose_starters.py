"""python -m demo.choose_starters [--sheet FILE]: choose what the tabs open with, and write demo/starters.json.

Draws are ranked by how well the model itself can explain them: a sharp face that the encoder and the decoder give back
is seldom a broken one. Look at the sheet before you commit the file, and replace by hand what you do not like. To be
run again whenever a shipped model changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.__main__ import shipped
from demo.evolution import Lineage
from demo.service import STARTERS_FILE, Service
from demo.tabs.sample import COUNT
from vae_runtime import VAE, image_grid, save_png
from vae_runtime.cli.arguments import Parser, integer, run
from vae_runtime.images import Pixels

FACES = 4
"""Faces to blend."""
VARIETY = 12.0
"""Mean absolute difference of two starter faces, of 255, at least."""


def main(arguments: Sequence[str]) -> int:
    """Choose for each model, write the file, and draw a sheet of the choice; the exit status."""
    parser = Parser(prog="python -m demo.choose_starters", description="Choose the faces that the demo opens with")
    parser.add_argument("models", nargs="*", help="folders (default: all shipped models)")
    parser.add_argument("--candidates", type=integer(16, 100_000), default=600, help="seeds to try")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="PNG of the chosen faces, to look at")
    options = parser.parse_args(arguments)
    found = json.loads(STARTERS_FILE.read_text(encoding="utf-8")) if STARTERS_FILE.exists() else {}
    rows: list[Pixels] = []
    for model in options.models or shipped():
        with VAE.load(model, device="cpu") as vae:
            several = options.candidates // 6
            seed = best_seed(vae, [vae.sample(COUNT, rng=seed) for seed in range(several)])
            service = Service(vae)
            line = best_seed(vae, [service.evolve(Lineage(seed)) for seed in range(several)])
            faces = best_faces(vae, options.candidates)
            found[vae.config.name] = {"seed": seed, "line": line, "faces": faces}
            drawn = [*(vae.sample(1, rng=face) for face in faces), vae.sample(COUNT, rng=seed)]
            drawn.append(service.evolve(Lineage(line)))
            rows.append(image_grid(np.concatenate(drawn), 11, scale=96 // vae.image_size or 1))
    STARTERS_FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(STARTERS_FILE)
    if options.sheet:
        width = max(row.shape[1] for row in rows)
        padded = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
        print(save_png(np.concatenate(padded), options.sheet))
    return 0


def badness(vae: VAE, faces: Pixels) -> NDArray[np.float64]:
    """How little the model can explain each of its own faces, and how soft they are, (n,): ranks, in [0, 1.5].

    The squared error of the reconstruction, in that of the face's own contrast, and half the rank of the detail: the
    mean difference of a pixel from its four neighbors.
    """
    error = np.square(faces.astype(np.float64) - vae.reconstruct(faces)).mean(axis=(1, 2, 3))
    contrast = faces.astype(np.float64).var(axis=(1, 2, 3)) + 100
    gray = faces.mean(axis=3)
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    detail = np.abs(4 * gray[:, 1:-1, 1:-1] - around).mean(axis=(1, 2))
    return ranks(error / contrast) + ranks(-detail) / 2


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value, from 0 for the least to 1."""
    return np.argsort(np.argsort(values)) / max(1, len(values) - 1)


def best_faces(vae: VAE, candidates: int) -> list[int]:
    """Seeds of single faces, the best first, no two of them alike."""
    drawn = np.concatenate([vae.sample(1, rng=seed) for seed in range(candidates)])
    chosen: list[int] = []
    for seed in np.argsort(badness(vae, drawn)):
        difference = [np.abs(drawn[seed].astype(float) - drawn[other]).mean() for other in chosen]
        if min(difference, default=255.0) >= VARIETY:
            chosen.append(int(seed))
        if len(chosen) == FACES:
            break
    return chosen


def best_seed(vae: VAE, drawn: Sequence[Pixels]) -> int:
    """The seed, 0 and on, whose faces are best on average."""
    score = badness(vae, np.concatenate(drawn))
    return int(np.argmin(score.reshape(len(drawn), -1).mean(axis=1)))


if __name__ == "__main__":
    run(main)
