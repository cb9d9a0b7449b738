"""Feature matching (Salimans, Goodfellow, Zaremba, Cheung, Radford & Chen, "Improved techniques for training GANs",
2016, section 3.1): new faces have the mean features of real ones, and vary as much.

The critic judges picture by picture, and what every new face has a little too much of, it lets pass. A mean over
thousands of them shows it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_train.model.metrics import laplacian_pyramid

_VARIANCES = 0.2  # weight of the variances
_SLOWER = 4  # how many times longer the offset of the averaged decoder is averaged
_FILTERS = 128
_SIDE = 7  # of a filter, in pixels
_STRIDE = 2
_SEED = 11
_UNSEEN = 0.02  # about what a flat area answers when it is rounded to 8 bits
_EDGE = 0.04  # of the range of pixels: what an edge is, and no more, however strong


class Textures(nn.Module):
    """How strongly a picture answers to random, fixed filters.

    The squares of the answers have the covariance of patches as their mean, which decides most of the sliced
    Wasserstein distance (Karras et al. 2018, section 5); their absolute values tell flat areas with edges from noise,
    their logarithms flat areas from almost flat ones.
    """

    filters: Tensor
    """(_FILTERS, 3, _SIDE, _SIDE)"""

    def __init__(self) -> None:
        super().__init__()
        filters = torch.randn(_FILTERS, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(_SEED))
        self.register_buffer("filters", filters)

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, S, S) in [0, 1] -> at each level of a Laplacian pyramid the means of squares, of absolute values and
        of logarithms of squares, (n, levels * 384)"""
        means = []
        for level in laplacian_pyramid(image):
            answers = functional.conv2d(level, self.filters, stride=_STRIDE)
            squares = answers.square()
            each = squares, answers.abs(), torch.log(squares + _UNSEEN**2)
            means += [values.mean((2, 3)) for values in each]
        return torch.cat(means, 1)


def pixels(image: Tensor) -> Tensor:
    """The levels of the Laplacian pyramid of pictures, (n, 3, S, S) in [0, 1] -> (n, c); all but the last are bounded.

    Their mean is a mean picture: what a decoder draws in the same place of every picture stays in it, where that of
    real ones is smooth. Without a bound, a few pictures of the opposite pattern would make up for all others.
    """
    *edges, rest = laplacian_pyramid(image)
    return torch.cat([level.flatten(1) for level in (*(torch.tanh(edge / _EDGE) for edge in edges), rest)], 1)


class FeatureMoments(nn.Module):
    """The distance of the moments of drawn pictures' features from those of real ones: the mean of each channel, and
    the variance along each of the principal directions of the real features."""

    real: Tensor
    """(channels,): the mean, and with `deviation` the scale, of each channel of real features."""
    deviation: Tensor
    basis: Tensor
    """(channels, directions): onto principal directions of real features, in unit variance."""
    drawn: Tensor
    """(channels + directions,): moving averages of drawn features, and of their squares along `basis`."""
    offset: Tensor
    """The same, but slower, of how far those of the averaged decoder are from them."""
    seen: Tensor

    def __init__(self, channels: int, directions: int = 0, floor: float = 1e-3) -> None:
        """directions: 0 to match the means alone. floor: added to deviations, for channels that hardly vary."""
        super().__init__()
        self.floor = floor
        self.register_buffer("real", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("basis", torch.zeros(channels, directions))
        self.register_buffer("drawn", torch.zeros(channels + directions))
        self.register_buffer("offset", torch.zeros(channels + directions))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Measure the moments of features (n, channels) of real pictures, a batch at a time."""
        count = 0
        total = squares = products = torch.zeros((), dtype=torch.float64, device=self.real.device)
        for features in (batch.double() for batch in batches):
            count, total, squares = count + len(features), total + features.sum(0), squares + features.square().sum(0)
            if self.basis.numel():
                products = products + features.T @ features
        mean = total / count
        variance = (squares - count * mean.square()) / (count - 1)
        self.real.copy_(mean)
        self.deviation.copy_(variance.clamp(min=0).sqrt() + self.floor)
        if self.basis.numel():
            covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
            variances, directions = torch.linalg.eigh(covariance)
            basis = (directions / variances.clamp(min=1e-6).sqrt()).flip(1)  # from large to small
            self.basis.copy_(basis[:, : self.basis.shape[1]])

    def restart(self) -> None:
        """Forget what was drawn."""
        for moving in (self.drawn, self.offset, self.seen):
            moving.zero_()

    def forward(self, features: Tensor, averaged: Tensor, half_life: int) -> Tensor:
        """Features of pictures that are drawn by the decoder in training and by the averaged one, (n, channels) each
        -> mean squared distance of means, in deviations, and `_VARIANCES` times that of logarithms of variances, ().
        half_life: of the moving averages, in pictures.

        The averaged decoder is what counts, but it comes late: a loop that waits for it swings. So what is followed is
        the decoder in training, corrected by how far the averaged one is off on the same codes. The value is that of
        the moving averages; the gradient is that of this batch.
        """
        moments = self._moments(features)
        with torch.no_grad():
            self.seen += len(features)
            self._follow(self.drawn, moments, len(features), half_life)
            offset = self._moments(averaged) - moments
            self._follow(self.offset, offset, len(features), _SLOWER * half_life)
        followed = self.drawn + self.offset + (moments - moments.detach())
        mean, variance = followed[: len(self.real)], followed[len(self.real) :]
        means, variances = (mean - self.real) / self.deviation, torch.log(variance.clamp(min=1e-3))
        spread = variances.square().sum() / max(1, len(variances))
        return means.square().mean() + _VARIANCES * spread

    def _follow(self, moving: Tensor, newest: Tensor, count: int, half_life: int) -> None:
        """Mix the means of `count` pictures into their moving average; the first ones count more."""
        moving.lerp_(newest, torch.clamp(count / self.seen, min=1 - 0.5 ** (count / half_life)))

    def _moments(self, features: Tensor) -> Tensor:
        squares = ((features - self.real) @ self.basis).square()
        return torch.cat([features.mean(0), squares.mean(0)])
