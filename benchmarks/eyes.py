"""Whether the two eyes of new faces belong together, by a matcher that no training of theirs saw."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime import VAE
from vae_train.adversarial.eyes import EyeMatcher
from vae_train.data.faces import Faces
from vae_train.engine.rng import EYES, make_generator

SEED = 1000
"""Of the matcher: another than that of a second stage."""
RARE = 0.1
"""Share of real faces whose eyes count as unlike."""


def measure(vae: VAE, faces: Faces, count: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Of each kind of pictures: the median likeness of both eyes, the share that are less alike than `RARE` of the
    held-out faces, and how often the eyes of a held-out face are the more alike ones (the area under the ROC curve).

    Of the held-out faces, of `count` new ones, and, as the other end of the scale, of the held-out faces with the right
    half of another. faces: those of the training, aligned as those of the model are.
    """
    held_out = faces.held_out()
    torch.manual_seed(SEED)
    matcher = EyeMatcher().to(device)
    real = torch.from_numpy(faces.pixels[~held_out]).to(device)
    matcher.fit(real, lambda step: make_generator(SEED, EYES, step, device))

    kept = faces.pixels[held_out]
    half = kept.shape[3] // 2
    swapped = np.concatenate([kept[..., :half], np.roll(kept, 1, axis=0)[..., half:]], axis=3)
    new = np.ascontiguousarray(vae.sample(count, rng=1).transpose(0, 3, 1, 2))
    pictures = {"real faces, held out": kept, "new faces": new, "halves of two real faces": swapped}
    found = {name: matcher.likeness(torch.from_numpy(each).to(device)).cpu().numpy() for name, each in pictures.items()}
    reference = found["real faces, held out"]
    return {name: compare(scores, reference) for name, scores in found.items()}


def compare(scores: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    """The three figures of `measure`, of likenesses (n,) against those of held-out faces (m,)."""
    below = (scores[:, None] < reference).mean() + (scores[:, None] == reference).mean() / 2
    unlike = (scores < np.quantile(reference, RARE)).mean()
    return {"median": float(np.median(scores)), "unlike": float(unlike), "behind": float(below)}


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| | likeness of both eyes, median | unlike | behind real ones |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['median']:.3f} | {row['unlike']:.1%} | {row['behind']:.3f} |" for name, row in rows.items()
    ]
    return "\n".join(lines)
