"""The presets: each an architecture and the settings it is trained with. To add one, write its builders and its Preset.

Builders import torch when they are called: command lines are read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

PLAIN, FINE = "plain", "fine"
"""Decoders: that of every preset, and a more expensive one with hidden channels at full size."""
FINE_CHANNELS = 16
"""Hidden channels at full size of the decoder "fine" of base."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An architecture and its settings. Image sizes S are multiples of 32."""

    name: str
    summary: str
    """A few words for the command line."""
    settings: Mapping[str, Any]
    """What it sets apart from the defaults of TrainConfig."""
    channels: int
    """Between the convolutions and the linear maps."""
    side: Callable[[int], int]
    """S -> s, the side of the features between the convolutions and the linear maps."""
    encoder: Callable[[int], nn.Sequential]
    """S -> layers (n, 3, S, S) -> (n, channels, s, s)."""
    decoders: Mapping[str, Callable[[int], nn.Sequential]]
    """By name, S -> layers (n, channels, s, s) -> (n, 3, S, S)."""
    logvar_rank: int | None = None
    """Rank of the linear map to logvar; None: full."""


def _classic_encoder(image_size: int) -> nn.Sequential:
    from torch import nn

    from vae_train.model.layers import down

    return nn.Sequential(down(3, 16), down(16, 32), down(32, 64), down(64, 128), down(128, 256))


def _classic_decoder(image_size: int) -> nn.Sequential:
    from torch import nn

    from vae_train.model.layers import Pixels, up

    ups = (up(256, 128), up(128, 64), up(64, 32), up(32, 16), up(16, 16))
    return nn.Sequential(*ups, nn.Conv2d(16, 3, 3, padding=1), Pixels())


def _base_halvings(image_size: int) -> int:
    return (image_size // 8).bit_length() - 1


def _base_widths(image_size: int) -> list[int]:
    """Channels after each halving of the side, until 8 to 15 places are left of it: at 64 pixels 32, 64, 128."""
    return [max(32, 128 >> number) for number in reversed(range(_base_halvings(image_size)))]


def _base_encoder(image_size: int) -> nn.Sequential:
    """It stops at 8 places a side: the linear map behind it sees the whole face, and what convolutions of stride 2
    would have to squeeze into few numbers before, it can weigh itself. The last layer keeps it small."""
    from torch import nn

    from vae_train.model.layers import Block, halve

    widths = _base_widths(image_size)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), Block(widths[0])]
    for inputs, outputs in pairwise(widths):
        layers += [halve(inputs, outputs), Block(outputs)]
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 32, 1))


def _base_decoder(image_size: int) -> nn.Sequential:
    from torch import nn

    from vae_train.model.layers import Block, Pixels, double

    widths = _base_widths(image_size)[::-1]
    layers: list[nn.Module] = [nn.Conv2d(32, widths[0], 1), Block(widths[0])]
    for inputs, outputs in pairwise(widths):
        layers += [double(inputs, outputs), Block(outputs)]
    last = nn.ConvTranspose2d(widths[-1], 3, 4, stride=2, padding=1)
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), last, Pixels())


def _fine_base_decoder(image_size: int) -> nn.Sequential:
    """A quarter slower: two narrower blocks in place of the one at the coarsest size, and the last map, from half the
    side to pixels, has `FINE_CHANNELS` hidden channels at full size."""
    from torch import nn

    from vae_train.model.layers import Block, Pixels, double

    widths = _base_widths(image_size)[::-1]
    layers: list[nn.Module] = [nn.Conv2d(32, widths[0], 1)]  # made first: the order decides the first weights of a seed
    layers += [Block(widths[0], hidden=widths[0] // 2) for _ in range(2)]
    for inputs, outputs in pairwise(widths):
        layers += [double(inputs, outputs), Block(outputs)]
    hidden = nn.ConvTranspose2d(widths[-1], FINE_CHANNELS, 2, stride=2)
    last = nn.Conv2d(FINE_CHANNELS, 3, 3, padding=1)
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), hidden, nn.LeakyReLU(0.2), last, Pixels())


CLASSIC = Preset(
    name="classic",
    summary="32x32, five stride-2 convolutions",
    settings={},
    channels=256,
    side=lambda image_size: image_size // 32,
    encoder=_classic_encoder,
    decoders={PLAIN: _classic_decoder},
)
"""That of the anime-face write-up; the defaults of TrainConfig are its settings."""

BASE = Preset(
    name="base",
    summary="64x64, residual, sharper",
    settings={
        "image_size": 64,
        "latent_dim": 512,
        "epochs": 100,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "warmup": 200,
        "clip": 1000.0,
        "likelihood": "gaussian",
        "sharpness": 1.0,
        "flip": True,
        "shift": 2,
    },
    channels=32,
    side=lambda image_size: image_size >> _base_halvings(image_size),
    encoder=_base_encoder,
    decoders={PLAIN: _base_decoder, FINE: _fine_base_decoder},
    # How sure a code is depends on little, and a full map would weigh as much as that to mu.
    logvar_rank=64,
)

PRESETS = {preset.name: preset for preset in (CLASSIC, BASE)}
DECODERS = tuple(dict.fromkeys(name for preset in PRESETS.values() for name in preset.decoders))
