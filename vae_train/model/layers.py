"""The layers that the networks of the presets are built of."""

from __future__ import annotations

from torch import Tensor, nn


def down(inputs: int, outputs: int) -> nn.Sequential:
    """(n, inputs, s, s) -> (n, outputs, s/2, s/2)"""
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))


def up(inputs: int, outputs: int) -> nn.Sequential:
    """(n, inputs, s, s) -> (n, outputs, 2s, 2s)"""
    conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))


class Pixels(nn.Sigmoid):
    """Any numbers -> [0, 1] in float32, under autocast too: bfloat16's steps below 1 are no finer than 8-bit pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Block(nn.Module):
    """x + f(x): two convolutions around a shortcut that nothing interrupts (He et al., "Identity mappings in deep
    residual networks", 2016). BatchNorm stands behind each convolution, not before the activation, so that it can be
    folded away at export.

    hidden: channels between the two convolutions; as many as `channels` by default, fewer make a bottleneck.

    (n, channels, s, s) -> the same
    """

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        self.layers = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.layers(x)
        return x + change


def halve(inputs: int, outputs: int) -> nn.Sequential:
    """(n, inputs, s, s) -> (n, outputs, s/2, s/2), each place from its own four"""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 2, stride=2, bias=False), nn.BatchNorm2d(outputs))


def double(inputs: int, outputs: int) -> nn.Sequential:
    """(n, inputs, s, s) -> (n, outputs, 2s, 2s), each four from their own place: no checkerboard"""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), nn.BatchNorm2d(outputs))
