"""The networks. Kingma & Welling, "Auto-Encoding Variational Bayes" (2014), in two convolutional forms: `classic`, that
of the anime-face write-up (five stride-2 convolutions down, five stride-2 transposed convolutions up), and `base`, with
residual blocks between the changes of size.

Where the usual write-ups slip, this does not: both heads are plain linear layers of the ENCODER, the second one is the
log-variance (sigma = exp(logvar / 2) does not come from the decoder), and the pictures leave through a sigmoid, because
pixels lie in [0, 1] (a tanh would reach for [-1, 1]).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vae_runtime.latent import LOGVAR_RANGE
from vae_train.config import STRIDE, TrainConfig


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


def classic_encoder(image_size: int) -> nn.Sequential:
    """(n, 3, S, S) -> (n, 256, S/32, S/32)"""
    return nn.Sequential(down(3, 16), down(16, 32), down(32, 64), down(64, 128), down(128, 256))


def classic_decoder(image_size: int, decoder: str = "plain") -> nn.Sequential:
    """(n, 256, S/32, S/32) -> (n, 3, S, S)."""
    return nn.Sequential(
        up(256, 128),
        up(128, 64),
        up(64, 32),
        up(32, 16),
        up(16, 16),
        nn.Conv2d(16, 3, 3, padding=1),
        Pixels(),
    )


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


FINE_CHANNELS = 16
"""Hidden channels at full size of the decoder "fine"."""


def base_widths(image_size: int) -> list[int]:
    """Channels after each halving of the side, until 8 to 15 places are left of it: at 64 pixels 32, 64, 128."""
    halvings = halvings_of("base", image_size)
    return [max(32, 128 >> number) for number in reversed(range(halvings))]


def base_encoder(image_size: int) -> nn.Sequential:
    """(n, 3, S, S) -> (n, 32, s, s), s from 8 to 15

    It stops at 8 places a side: the linear map behind it sees the whole face, and what convolutions of stride 2 would
    have to squeeze into few numbers before, it can weigh itself. The last layer keeps it small.
    """
    widths = base_widths(image_size)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), Block(widths[0])]
    for inputs, outputs in pairwise(widths):
        layers += [halve(inputs, outputs), Block(outputs)]
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 32, 1))


def base_decoder(image_size: int, decoder: str = "plain") -> nn.Sequential:
    """(n, 32, s, s), s from 8 to 15 -> (n, 3, S, S)

    decoder: "plain", or "fine", which costs a quarter more: its block at the coarsest size becomes two narrower ones,
    and the last map from half the side to pixels gets `FINE_CHANNELS` hidden channels at full size.
    """
    widths = base_widths(image_size)[::-1]
    fine = decoder == "fine"
    layers: list[nn.Module] = [nn.Conv2d(32, widths[0], 1)]  # made first: the order decides the first weights of a seed
    layers += [Block(widths[0], hidden=widths[0] // 2) for _ in range(2)] if fine else [Block(widths[0])]
    for inputs, outputs in pairwise(widths):
        layers += [double(inputs, outputs), Block(outputs)]
    layers.append(nn.LeakyReLU(0.2))
    if fine:
        hidden = nn.ConvTranspose2d(widths[-1], FINE_CHANNELS, 2, stride=2)
        return nn.Sequential(*layers, hidden, nn.LeakyReLU(0.2), nn.Conv2d(FINE_CHANNELS, 3, 3, padding=1), Pixels())
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, stride=2, padding=1), Pixels())


NETWORKS = {"classic": (classic_encoder, classic_decoder, 256), "base": (base_encoder, base_decoder, 32)}
"""Preset -> its two halves, and the channels between them and the vector."""


def halvings_of(preset: str, image_size: int) -> int:
    """How many times a network halves the side."""
    return 5 if preset == "classic" else (image_size // 8).bit_length() - 1


_LOGVAR_RANK = 64
"""Of the linear map to logvar in `base`: how sure a code is depends on little, and a full map would weigh as much as
that to mu."""


class Encoder(nn.Module):
    """image (n, 3, S, S) in [0, 1] -> mu, logvar (n, latent_dim) each; S a multiple of 32"""

    def __init__(self, image_size: int = 32, latent_dim: int = 128, preset: str = "classic") -> None:
        super().__init__()
        make, _, channels = NETWORKS[preset]
        width = channels * (image_size >> halvings_of(preset, image_size)) ** 2
        self.features = nn.Sequential(*make(image_size), nn.Flatten())
        self.mu = nn.Linear(width, latent_dim)
        self.logvar: nn.Module = nn.Linear(width, latent_dim)
        if preset == "base":
            rank = min(_LOGVAR_RANK, latent_dim)
            self.logvar = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, latent_dim))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return self.mu(features).float(), self.logvar(features).float()


class Decoder(nn.Module):
    """z (n, latent_dim) -> image (n, 3, S, S) in [0, 1]"""

    def __init__(
        self, image_size: int = 32, latent_dim: int = 128, preset: str = "classic", decoder: str = "plain"
    ) -> None:
        super().__init__()
        _, make, channels = NETWORKS[preset]
        side = image_size >> halvings_of(preset, image_size)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, channels * side * side),
            nn.Unflatten(1, (channels, side, side)),
            *make(image_size, decoder),
        )

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(z)
        return image


def reparameterize(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mu + exp(logvar / 2) * eps, eps ~ N(0, I) given by the caller (Kingma & Welling 2014, section 2.4).

    mu, logvar, eps: (n, latent_dim). `logvar` is cut as in `vae_runtime.latent.reparameterize`.
    """
    return mu + torch.exp(logvar.clamp(*LOGVAR_RANGE) / 2) * eps


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each BatchNorm into the convolution before it, in place, as the exported graphs have it.

    Every other parameter keeps its name, and the evaluated network its answers; `module` is left in eval mode.
    """
    module.eval()
    for part in module.modules():
        if not isinstance(part, nn.Sequential):
            continue
        for number, (before, norm) in enumerate(pairwise(list(part))):
            if isinstance(norm, nn.BatchNorm2d):
                transposed = isinstance(before, nn.ConvTranspose2d)
                part[number] = fuse_conv_bn_eval(before, norm, transposed)
                part[number + 1] = nn.Identity()


class VAE(nn.Module):
    """An encoder and a decoder. image, eps -> reconstruction, mu, logvar

    batch_norm: False for convolutions with biases in place of BatchNorm, the form of exported graphs.
    """

    def __init__(
        self,
        image_size: int = 32,
        latent_dim: int = 128,
        preset: str = "classic",
        decoder: str = "plain",
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if image_size < STRIDE or image_size % STRIDE:
            raise ValueError(f"image_size: got {image_size}, expected a multiple of {STRIDE}")
        self.image_size, self.latent_dim, self.preset = image_size, latent_dim, preset
        self.decoder_kind = decoder
        self.encoder = Encoder(image_size, latent_dim, preset)
        self.decoder = Decoder(image_size, latent_dim, preset, decoder)
        if not batch_norm:
            fold_batch_norm(self)

    @classmethod
    def from_config(cls, config: TrainConfig) -> VAE:
        """A network of the architecture that `config` describes, with random weights."""
        return cls(config.image_size, config.latent_dim, config.preset, config.decoder, config.batch_norm)

    def forward(self, image: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encoder(image)
        return self.decoder(reparameterize(mu, logvar, eps)), mu, logvar
