"""Random numbers as a function of (seed, purpose, index): there is no state to save."""

from __future__ import annotations

import numpy as np
import torch

ORDER, NOISE, HELD_OUT, MIRROR, KERNELS, SHIFT, REFINE, EYES, MOUTH = range(9)
"""The purposes. Their numbers decide what is drawn: append, never reorder."""


def make_generator(seed: int, purpose: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one purpose at one index, such as an epoch or a step."""
    mixed = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> 1))
