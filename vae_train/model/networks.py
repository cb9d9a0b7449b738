"""The networks. Kingma & Welling, "Auto-Encoding Variational Bayes" (2014), in the convolutional forms of the presets:
`classic`, that of the anime-face write-up (five stride-2 convolutions down, five stride-2 transposed convolutions up),
and `base`, with residual blocks between the changes of size.

Where the usual write-ups slip, this does not: both heads are plain linear layers of the ENCODER, the second one is the
log-variance (sigma = exp(logvar / 2) does not come from the decoder), and the pictures leave through a sigmoid, because
pixels lie in [0, 1] (a tanh would reach for [-1, 1]).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vae_runtime.latent import LOGVAR_RANGE
from vae_train.config import STRIDE, TrainConfig
from vae_train.model.presets import PLAIN, PRESETS


class Encoder(nn.Module):
    """image (n, 3, S, S) in [0, 1] -> mu, logvar (n, latent_dim) each; S a multiple of 32"""

    def __init__(self, image_size: int = 32, latent_dim: int = 128, preset: str = "classic") -> None:
        super().__init__()
        parts = PRESETS[preset]
        width = parts.channels * parts.side(image_size) ** 2
        self.features = nn.Sequential(*parts.encoder(image_size), nn.Flatten())
        self.mu = nn.Linear(width, latent_dim)
        # Made also where it is replaced: the order decides the first weights of a seed.
        self.logvar: nn.Module = nn.Linear(width, latent_dim)
        if parts.logvar_rank is not None:
            rank = min(parts.logvar_rank, latent_dim)
            self.logvar = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, latent_dim))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return self.mu(features).float(), self.logvar(features).float()


class Decoder(nn.Module):
    """z (n, latent_dim) -> image (n, 3, S, S) in [0, 1]"""

    def __init__(
        self, image_size: int = 32, latent_dim: int = 128, preset: str = "classic", decoder: str = PLAIN
    ) -> None:
        super().__init__()
        parts = PRESETS[preset]
        shape = parts.channels, parts.side(image_size), parts.side(image_size)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, math.prod(shape)),
            nn.Unflatten(1, shape),
            *parts.decoders[decoder](image_size),
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
            if isinstance(norm, nn.BatchNorm2d) and isinstance(before, nn.Conv2d | nn.ConvTranspose2d):
                part[number] = fuse_conv_bn_eval(before, norm, isinstance(before, nn.ConvTranspose2d))
                part[number + 1] = nn.Identity()
    module.requires_grad_(True)  # biases that were none come out of the folding as constants


class VAE(nn.Module):
    """An encoder and a decoder. image, eps -> reconstruction, mu, logvar

    batch_norm: False for convolutions with biases in place of BatchNorm, the form of exported graphs.
    """

    def __init__(
        self,
        image_size: int = 32,
        latent_dim: int = 128,
        preset: str = "classic",
        decoder: str = PLAIN,
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
