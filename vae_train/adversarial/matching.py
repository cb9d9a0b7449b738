"""Feature matching (Salimans, Goodfellow, Zaremba, Cheung, Radford & Chen, "Improved techniques for training GANs",
2016, section 3.1): new faces have the mean features of real ones.

The critic judges picture by picture, and what every new face has a little too much of, it lets pass. A mean over
thousands of them shows it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MeanFeatures(nn.Module):
    """The distance of the mean features of drawn pictures, a moving average over batches, from those of real ones."""

    def __init__(self, channels: int, half_life: int) -> None:
        """half_life: of the moving average, in pictures."""
        super().__init__()
        self.half_life = half_life
        self.register_buffer("real", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("drawn", torch.zeros(channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Measure mean and deviation of each channel on the features (n, channels) of real pictures."""
        self.get_buffer("real").copy_(features.mean(0))
        self.get_buffer("deviation").copy_(features.std(0) + 1e-3)

    def forward(self, features: Tensor) -> Tensor:
        """features of drawn pictures (n, channels) -> mean squared distance in deviations, ().

        Its value is that of the moving average, its gradient that of this batch.
        """
        drawn, seen, mean = self.get_buffer("drawn"), self.get_buffer("seen"), features.mean(0)
        seen += len(features)
        with torch.no_grad():  # the first batches count more
            kept = torch.clamp(1 - len(features) / seen, max=0.5 ** (len(features) / self.half_life))
            drawn.lerp_(mean, 1 - kept)
        estimate = mean + (drawn - mean).detach()
        return ((estimate - self.get_buffer("real")) / self.get_buffer("deviation")).square().mean()
