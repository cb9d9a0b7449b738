"""Whether the two eyes of new faces belong together, by a matcher that no training of theirs saw."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime import VAE
from vae_train.adversarial.eyes import EyeMatcher
from vae_train.data.faces import Faces
from vae_train.engine.rng import EYES, make_generator
from vae_train.model.tensors import to_unit

SEED = 1000
"""Of the matcher: another than that of a second stage."""
RARE = 0.03
"""Share of real faces whose eyes count as unlike."""
_BATCH = 250


def measure(vae: VAE, faces: Faces, count: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Median likeness of both eyes, and the share of pairs that are less alike than `RARE` of the held-out pairs.

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
    found = {name: likeness(matcher, each, device) for name, each in pictures.items()}
    limit = np.quantile(found["real faces, held out"], RARE)
    return {name: {"median": float(np.median(v)), "unlike": float((v < limit).mean())} for name, v in found.items()}


@torch.no_grad()
def likeness(matcher: EyeMatcher, pixels: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """(n, 3, S, S) -> (n,), from -1 to 1."""
    batches = torch.from_numpy(pixels).split(_BATCH)
    return torch.cat([matcher(to_unit(batch.to(device))) for batch in batches]).cpu().numpy()


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| | likeness of both eyes, median | unlike |", "|---|---|---|"]
    lines += [f"| {name} | {row['median']:.3f} | {row['unlike']:.1%} |" for name, row in rows.items()]
    return "\n".join(lines)
