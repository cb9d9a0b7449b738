"""Measures of pictures and codes, as pure functions on torch tensors."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PATCH = 7
PATCHES_AN_IMAGE = 128
DIRECTIONS = 512
SMALLEST_LEVEL = 16


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture: (n, 3, S, S) in [0, 1] twice -> (n,)."""
    error = (images - targets).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-12))


def active_units(mu: Tensor) -> int:
    """How many latents have a mu, (n, latent_dim), that varies by more than 0.01 (Burda et al. 2016, section 5.2)."""
    return int((mu.double().var(0, correction=0) > 0.01).sum().item())


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each picture: (n, 3, S, S) in [0, 1] twice, S >= 11 -> (n,).

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment" (2004): an 11 x 11 Gaussian window with sigma 1.5,
    K1 = 0.01, K2 = 0.03, population covariance, the mean over the window's valid places and the channels.
    """
    images, targets = images.double(), targets.double()
    ramp = torch.arange(11, dtype=torch.float64, device=images.device) - 5
    line = torch.exp(-(ramp**2) / (2 * 1.5**2))
    window = (line[:, None] * line[None] / line.sum() ** 2).expand(3, 1, 11, 11)

    def blur(x: Tensor) -> Tensor:
        return functional.conv2d(x, window, groups=3)

    mean_a, mean_b = blur(images), blur(targets)
    var_a, var_b = blur(images**2) - mean_a**2, blur(targets**2) - mean_b**2
    covariance = blur(images * targets) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1).float()


def importance_bound(negative_log_likelihood: Tensor, z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The importance-weighted negative bound in nats, (n,); at K = 1 it is one draw of the negative ELBO.

    negative_log_likelihood: (K, n), -log p(x|z_k). z: (K, n, latent_dim), drawn from q(z|x).
    mu, logvar: (n, latent_dim).
    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8.
    """
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    log_posterior = -0.5 * ((z - mu).square() / logvar.exp() + logvar + math.log(2 * math.pi)).sum(-1)
    log_weights = log_prior - log_posterior - negative_log_likelihood
    return math.log(len(z)) - torch.logsumexp(log_weights, 0)


def sliced_wasserstein(images: Tensor, others: Tensor, seed: int = 0) -> dict[int, float]:
    """Sliced Wasserstein distance x 1000 of two sets of pictures, by the side of each pyramid level.

    images, others: uint8 (n, 3, S, S), of equal n. Karras, Aila, Laine, Lehtinen, "Progressive growing of GANs" (2018),
    section 5: 7 x 7 patches of a Laplacian pyramid, down to 16 pixels, each color normalized over the set, compared
    along random directions.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = {}
    for one, other in zip(_pyramid(images), _pyramid(others), strict=True):
        first, second = (_descriptors(level, generator).T.contiguous() for level in (one, other))
        directions = torch.randn(len(first), DIRECTIONS, generator=generator).to(first)
        directions /= directions.norm(dim=0)
        gaps = [(_sorted(part.T @ first) - _sorted(part.T @ second)).abs().mean(1) for part in directions.split(32, 1)]
        distances[one.shape[-1]] = 1000 * torch.cat(gaps).mean().item()
    return distances


def _sorted(values: Tensor) -> Tensor:
    """Rows in ascending order; on a CPU by NumPy, which is several times as fast as torch."""
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else torch.sort(values).values


@functools.cache
def _binomial(device: torch.device) -> Tensor:
    """The smoothing kernel of the pyramid, made once a device: a CUDA graph cannot record its way there."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=device) / 16
    return (line[:, None] * line[None]).expand(3, 1, 5, 5)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """(n, 3, S, S) -> what each halving of the side takes away, (n, 3, S, S) first, and what is left at 16 pixels or
    more, (n, 3, s, s), last: together they are the pictures (Burt & Adelson, "The Laplacian pyramid", 1983)."""
    kernel = _binomial(images.device)

    def smooth(x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)

    levels = [images]
    while levels[-1].shape[-1] // 2 >= SMALLEST_LEVEL:
        levels.append(smooth(levels[-1])[..., ::2, ::2])
    for index in range(len(levels) - 1):
        spread = torch.zeros_like(levels[index])
        spread[..., ::2, ::2] = levels[index + 1]
        levels[index] = levels[index] - 4 * smooth(spread)
    return levels


def _pyramid(pixels: Tensor) -> list[Tensor]:
    """The Laplacian pyramid of uint8 pictures, in [-1, 1], the finest level first."""
    return laplacian_pyramid(pixels.float() / 127.5 - 1)


def _descriptors(level: Tensor, generator: torch.Generator) -> Tensor:
    """(n * PATCHES_AN_IMAGE, 3 * 49): patches at random places, each color with mean 0 and deviation 1."""
    n, side = len(level), level.shape[-1]
    corners = torch.randint(0, side - PATCH + 1, (2, n, PATCHES_AN_IMAGE, 1, 1), generator=generator)
    ramp = torch.arange(PATCH)
    rows = (corners[0] + ramp[:, None]).to(level.device)
    columns = (corners[1] + ramp).to(level.device)
    picture = torch.arange(n, device=level.device)[:, None, None, None]
    patches = level.permute(0, 2, 3, 1)[picture, rows, columns]
    deviation, mean = torch.std_mean(patches, (0, 1, 2, 3), correction=0)
    return ((patches - mean) / deviation.clamp_min(1e-8)).flatten(2).flatten(0, 1)
