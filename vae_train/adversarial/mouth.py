"""Whether the mouth of a face is there: beside the eyes, what is most often smeared, or lost behind a hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_train.adversarial.finder import MEASURED, TYPICAL, Generators, PartFinder
from vae_train.model.tensors import thinned, to_unit

_CENTER = 0.5, 0.7  # in an aligned face, in widths and heights
_SEARCHED = slice(26, 64), slice(12, 52)  # rows and columns
_BATCH = 192


class Mouth(nn.Module):
    """(n, 3, S, S) aligned faces -> how clearly their mouths are seen, in nats: (n,)"""

    clear: Tensor
    """(): what the mouths of three of four real faces reach."""

    def __init__(self) -> None:
        super().__init__()
        self.finder = PartFinder(_CENTER, _SEARCHED)
        self.register_buffer("clear", torch.tensor(0.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.finder.find(image)[0]

    def loss(self, image: Tensor) -> Tensor:
        """By how much the mouths of new faces are less clear than those of real ones: ()"""
        return functional.relu(self.clear - self(image)).mean()

    def fit(self, real: Tensor, make_generator: Generators) -> None:
        """Learn from real faces, uint8 (N, 3, S, S)."""
        self.finder.fit(real, make_generator, "a mouth")
        self.eval().requires_grad_(False)
        self.clear.copy_(self.measure(thinned(real, MEASURED)).quantile(TYPICAL))

    @torch.no_grad()
    def measure(self, pixels: Tensor) -> Tensor:
        """What `forward` says of any number of pictures, uint8 (n, 3, S, S): (n,)"""
        return torch.cat([self(to_unit(batch)) for batch in pixels.split(_BATCH)])
