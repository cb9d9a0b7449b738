"""Whether the eyes of new faces are there and belong together, and the mouth is there, by networks that no training of
theirs saw."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime import VAE
from vae_train.adversarial.eyes import Eyes
from vae_train.adversarial.mouth import Mouth
from vae_train.data.faces import Faces
from vae_train.engine.rng import EYES, MOUTH, make_generator

SEED = 1000
"""Of the networks: another than that of a second stage."""
RARE = 0.1
"""Share of real faces whose eyes count as unlike, whose eyes as unclear, and whose mouth as unclear."""


def measure(vae: VAE, faces: Faces, count: int, device: torch.device) -> dict[str, list[dict[str, float]]]:
    """Of each kind of pictures, how alike both eyes are, how clearly the less clear one is seen, and how clearly the
    mouth: see `compare`.

    Of the held-out faces, of `count` new ones, and, as the other end of the scale, of the held-out faces with the right
    half of another. faces: those of the training, aligned as those of the model are.
    """
    held_out = faces.held_out()
    torch.manual_seed(SEED)
    eyes, mouth = Eyes().to(device), Mouth().to(device)
    real = torch.from_numpy(faces.pixels[~held_out]).to(device)
    eyes.fit(real, lambda step: make_generator(SEED, EYES, step, device))
    mouth.fit(real, lambda step: make_generator(SEED, MOUTH, step, device))

    kept = faces.pixels[held_out]
    half = kept.shape[3] // 2
    swapped = np.concatenate([kept[..., :half], np.roll(kept, 1, axis=0)[..., half:]], axis=3)
    new = np.ascontiguousarray(vae.sample(count, rng=1).transpose(0, 3, 1, 2))
    pictures = {"real faces, held out": kept, "new faces": new, "halves of two real faces": swapped}
    found = {name: _measured(eyes, mouth, each, device) for name, each in pictures.items()}
    reference = found["real faces, held out"]
    return {name: [compare(*each) for each in zip(scores, reference, strict=True)] for name, scores in found.items()}


def compare(scores: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    """Of scores (n,) beside those of held-out faces (m,): their median, the share below `RARE` of the held-out faces,
    and how often a held-out face has the higher one (the area under the ROC curve)."""
    behind = (scores[:, None] < reference).mean() + (scores[:, None] == reference).mean() / 2
    rare = (scores < np.quantile(reference, RARE)).mean()
    return {"median": float(np.median(scores)), "rare": float(rare), "behind": float(behind)}


def as_table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Markdown."""
    lines = [
        "| | eyes alike, median | unlike | behind | eyes clear, median | unclear | behind "
        "| mouth clear, median | unclear | behind |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in rows.items():
        cells = [f"{each['median']:.3f} | {each['rare']:.1%} | {each['behind']:.3f}" for each in figures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured(eyes: Eyes, mouth: Mouth, pictures: NDArray[np.uint8], device: torch.device) -> list[NDArray[np.float32]]:
    """How alike both eyes are, how clear they are, and how clear the mouth: (n,) each"""
    images = torch.from_numpy(pictures).to(device)
    clear, alike = eyes.measure(images)
    return [scores.cpu().numpy() for scores in (alike, clear, mouth.measure(images))]
