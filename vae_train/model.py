"""The networks. Kingma & Welling, "Auto-Encoding Variational Bayes" (2014), in the convolutional form of the classic
anime-face write-up: five stride-2 convolutions down, five stride-2 transposed convolutions up.

Where the usual write-ups slip, this does not: both heads are plain linear layers of the ENCODER, the second one is the
log-variance (sigma = exp(logvar / 2) does not come from the decoder), and the pictures leave through a sigmoid, because
pixels lie in [0, 1] (a tanh would reach for [-1, 1]).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_runtime.latent import LOGVAR_RANGE
from vae_train.config import CLASSIC_STRIDE


def down(inputs: int, outputs: int) -> nn.Sequential:
    """(n, inputs, s, s) -> (n, outputs, s/2, s/2)"""
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))


def up(inputs: int, outputs: int) -> nn.Sequential:
    """(n, inputs, s, s) -> (n, outputs, 2s, 2s)"""
    conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))


class Encoder(nn.Module):
    """image (n, 3, S, S) in [0, 1] -> mu, logvar (n, latent_dim) each; S a multiple of 32"""

    def __init__(self, image_size: int = 32, latent_dim: int = 128) -> None:
        super().__init__()
        side = image_size // CLASSIC_STRIDE
        self.features = nn.Sequential(
            down(3, 16),
            down(16, 32),
            down(32, 64),
            down(64, 128),
            down(128, 256),
            nn.Flatten(),
        )
        self.mu = nn.Linear(256 * side * side, latent_dim)
        self.logvar = nn.Linear(256 * side * side, latent_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return self.mu(features), self.logvar(features)


class Decoder(nn.Module):
    """z (n, latent_dim) -> image (n, 3, S, S) in [0, 1]"""

    def __init__(self, image_size: int = 32, latent_dim: int = 128) -> None:
        super().__init__()
        side = image_size // CLASSIC_STRIDE
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 256 * side * side),
            nn.Unflatten(1, (256, side, side)),
            up(256, 128),
            up(128, 64),
            up(64, 32),
            up(32, 16),
            up(16, 16),
            nn.Conv2d(16, 3, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(z)
        return image


def reparameterize(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mu + exp(logvar / 2) * eps, eps ~ N(0, I) given by the caller (Kingma & Welling 2014, section 2.4).

    mu, logvar, eps: (n, latent_dim). `logvar` is cut as in `vae_runtime.latent.reparameterize`.
    """
    return mu + torch.exp(logvar.clamp(*LOGVAR_RANGE) / 2) * eps


class VAE(nn.Module):
    """An encoder and a decoder. image, eps -> reconstruction, mu, logvar"""

    def __init__(self, image_size: int = 32, latent_dim: int = 128) -> None:
        super().__init__()
        if image_size < CLASSIC_STRIDE or image_size % CLASSIC_STRIDE:
            raise ValueError(f"image_size: got {image_size}, expected a multiple of {CLASSIC_STRIDE}")
        self.image_size, self.latent_dim = image_size, latent_dim
        self.encoder = Encoder(image_size, latent_dim)
        self.decoder = Decoder(image_size, latent_dim)

    def forward(self, image: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encoder(image)
        return self.decoder(reparameterize(mu, logvar, eps)), mu, logvar
