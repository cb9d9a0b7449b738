"""The critic of a projected GAN (Sauer, Chitta, Müller & Geiger, "Projected GANs converge faster", 2021), and the
augmentation that real and drawn pictures pass on their way to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

_MIXED = (32, 64, 96, 128)  # channels after the random projections, from fine to coarse
_MIXING_SEED = 7


class Projection(nn.Module):
    """Features in unit scale through random, fixed projections: across channels, then from coarse to fine (section 4
    of the paper). The critic cannot rely on a few strong channels, and each scale carries what coarser ones know."""

    def __init__(self, channels: Sequence[int]) -> None:
        """channels: of the features, from fine to coarse, as many as `_MIXED` has."""
        super().__init__()
        generator = torch.Generator().manual_seed(_MIXING_SEED)

        def random_map(outputs: int, inputs: int) -> Tensor:
            values = torch.randn(outputs, inputs, 1, 1, generator=generator)
            return values / math.sqrt(inputs)

        self.across_channels = _buffers(map(random_map, _MIXED, channels))
        self.across_scales = _buffers(map(random_map, _MIXED[:-1], _MIXED[1:]))
        self.means = _buffers(torch.zeros(1, n, 1, 1) for n in channels)
        self.deviations = _buffers(torch.ones(1, n, 1, 1) for n in channels)

    @torch.no_grad()
    def calibrate(self, features: Sequence[Tensor]) -> None:
        """Measure the scale of each channel on the features of some real pictures."""
        for mean, deviation, found in zip(self.means, self.deviations, features, strict=True):
            mean.copy_(found.float().mean((0, 2, 3), keepdim=True))
            deviation.copy_(found.float().std((0, 2, 3), keepdim=True) + 1e-3)

    def standardize(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features with zero mean and unit deviation in each channel, float32."""
        return [(x.float() - m) / s for x, m, s in zip(features, self.means, self.deviations, strict=True)]

    def forward(self, standardized: Sequence[Tensor]) -> list[Tensor]:
        """[(n, c, s, s), (n, c', s/2, s/2), ...] -> the same sizes with `_MIXED` channels"""
        mixed = [functional.conv2d(x, weight) for x, weight in zip(standardized, self.across_channels, strict=True)]
        for i in reversed(range(len(mixed) - 1)):
            coarse = functional.conv2d(mixed[i + 1], self.across_scales[i])
            coarse = functional.interpolate(coarse, size=mixed[i].shape[-2:], mode="bilinear", align_corners=False)
            mixed[i] = (mixed[i] + coarse) * 0.5**0.5
        return mixed


class Critic(nn.Module):
    """One light head for each scale of the projected features, one that sees a scale beside its mirror image, and two
    for the pixels, which see what the feature network does not: single pixels out of line, and whether both halves of a
    face agree."""

    def __init__(self, channels: Sequence[int]) -> None:
        """channels: of the feature network, from fine to coarse."""
        super().__init__()
        self.projection = Projection(channels)
        fine, middle, coarse, coarsest = _MIXED
        self.heads = nn.ModuleList(
            [
                _head(fine, [(64, 4, 2), (96, 4, 2)]),
                _head(middle, [(96, 4, 2), (96, 3, 1)]),
                _head(coarse, [(96, 3, 1)]),
                _head(coarsest, [(96, 3, 1)]),
                _head(3, [(16, 3, 1), (32, 4, 2), (64, 4, 2)]),
                _head(3, [(32, 4, 2), (64, 4, 2), (96, 4, 2), (128, 4, 2)]),
                _head(2 * middle, [(96, 4, 2), (96, 3, 1)]),
            ]
        )

    def forward(self, standardized: Sequence[Tensor], image: Tensor) -> list[Tensor]:
        """features by `Projection.standardize` and image (n, 3, S, S) in [0, 1] -> scores (n, 1, s, s) of each head"""
        pixels, features = image * 4 - 2, self.projection(standardized)
        both = torch.cat([features[1], features[1].flip(3)], 1)  # one eye where the other is
        inputs = [*features, pixels, pixels, both]
        return [head(x) for head, x in zip(self.heads, inputs, strict=True)]


def _head(inputs: int, layers: Sequence[tuple[int, int, int]]) -> nn.Sequential:
    """Convolutions of (channels, kernel, stride) with spectral norm (Miyato et al. 2018) and a score for each place."""
    parts: list[nn.Module] = []
    for outputs, kernel, stride in layers:
        convolution = spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False))
        parts += [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
        inputs = outputs
    return nn.Sequential(*parts, spectral_norm(nn.Conv2d(inputs, 1, 3, 1, 1)))


def critic_loss(real: Sequence[Tensor], drawn: Sequence[Tensor]) -> Tensor:
    """The hinge loss (Lim & Ye, "Geometric GAN", 2017), summed over the heads."""
    losses = [
        functional.relu(1 - r.float()).mean() + functional.relu(1 + d.float()).mean()
        for r, d in zip(real, drawn, strict=True)
    ]
    return torch.stack(losses).sum()


def generator_loss(drawn: Sequence[Tensor]) -> Tensor:
    """Minus the scores of the drawn pictures, summed over the heads."""
    return -torch.stack([score.float().mean() for score in drawn]).sum()


def augment(image: Tensor, generator: torch.Generator, noise: float = 0.0, strength: float = 0.4) -> Tensor:
    """DiffAugment (Zhao et al., "Differentiable augmentation for data-efficient GAN training", 2020): mirror, color,
    translation and cutout, each picture its own; and Gaussian noise (Sønderby et al. 2017, section 3.1).

    image (n, 3, S, S) in [0, 1]. noise: its deviation; it hides from the critic how flat the areas of drawings
    are, which it would look at alone. strength: of the color changes; what they hide from the critic, draws get wrong,
    so that they are weaker than the paper's (1.0).
    """
    n, _, size, _ = image.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=image.device)

    image = torch.where(uniform(n, 1, 1, 1) < 0.5, image.flip(3), image)
    image = image + (uniform(n, 1, 1, 1) - 0.5) * 0.5 * strength
    gray = image.mean(1, keepdim=True)
    image = gray + (image - gray) * (1 + (uniform(n, 1, 1, 1) - 0.5) * 1.5 * strength)
    mean = image.mean((1, 2, 3), keepdim=True)
    image = mean + (image - mean) * (1 + (uniform(n, 1, 1, 1) - 0.5) * strength)
    image = _cutout(_translate(image, uniform(n, 2), size * 3 // 32), uniform(n, 2), uniform(n), size // 6)
    return image + noise * torch.randn(image.shape, generator=generator, device=image.device) if noise else image


def _translate(image: Tensor, where: Tensor, most: int) -> Tensor:
    """Each picture moved by up to `most` pixels, its edge repeated. where: (n, 2) in [0, 1)"""
    n, _, size, _ = image.shape
    first = (where * (2 * most + 1)).long()
    places = first[:, :, None] + torch.arange(size, device=image.device)
    padded = functional.pad(image, [most] * 4, mode="replicate").permute(0, 2, 3, 1)
    picture = torch.arange(n, device=image.device)[:, None, None]
    return padded[picture, places[:, 0, :, None], places[:, 1, None, :]].permute(0, 3, 1, 2)


def _cutout(image: Tensor, center: Tensor, chance: Tensor, radius: int) -> Tensor:
    """Half of the pictures with a square of zeros. center: (n, 2) in [0, 1), chance: (n,)"""
    size = image.shape[-1]
    away = (torch.arange(size, device=image.device) - (center * size).long()[..., None]).abs()  # (n, 2, S)
    hidden = (away[:, 0, :, None] < radius) & (away[:, 1, None, :] < radius) & (chance < 0.5)[:, None, None]
    return image * ~hidden[:, None]


class _BufferList(nn.Module):
    """A list of tensors that move with the module and stay out of its parameters."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._count = len(tensors)
        for number, tensor in enumerate(tensors):
            self.register_buffer(str(number), tensor)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        return (self.get_buffer(str(number)) for number in range(self._count))

    def __getitem__(self, number: int) -> Tensor:
        return self.get_buffer(str(number))


def _buffers(tensors: Iterable[Tensor]) -> _BufferList:
    return _BufferList(list(tensors))
