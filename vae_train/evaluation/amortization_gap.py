"""How much of the bound the encoder leaves lying: the best mu and logvar of each picture, for the decoder as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_train.engine.runs import load_run
from vae_train.export.fit_latents import encode
from vae_train.model.losses import kl_divergence, negative_elbo, optimal_variance, reconstruction_nats, squared_error
from vae_train.model.networks import reparameterize
from vae_train.model.tensors import to_unit

STEPS = 200
LEARNING_RATE = 0.05
"""Of Adam at the first step; it falls to 0 along a cosine."""
DRAWS = 16
"""Codes of each picture in the figures."""

_BATCH = 100


def amortization_gap(path: Path, pixels: NDArray[np.uint8], device: torch.device) -> dict[str, float]:
    """What pictures (n, 3, S, S) lose because one encoder serves them all, by the run or checkpoint in `path`.

    amortization_gap: nats per image, the negative ELBO of the encoder's q(z|x) less that of the best diagonal Gaussian
    which descent finds for each picture. amortization_gap_bits_per_dim: the same. Under the run's likelihood and beta,
    a gaussian one's variance fitted to each. Cremer, Li, Duvenaud, "Inference suboptimality in variational
    autoencoders" (2018), section 3.
    """
    config, _, network = load_run(path)
    network.requires_grad_(False).to(device)
    images = to_unit(torch.from_numpy(np.array(pixels)).to(device))
    dimensions, generator = images[0].numel(), torch.Generator(device).manual_seed(0)
    codes = encode(network, pixels)
    mu, logvar = (torch.from_numpy(each).to(device) for each in (codes.mu, codes.logvar))

    def bound(mu: Tensor, logvar: Tensor) -> tuple[float, float]:
        noise = torch.Generator(device).manual_seed(1)
        error = _mean_error(network.decoder, images, mu, logvar, noise)
        kl = kl_divergence(mu, logvar).mean().item()
        return error, reconstruction_nats(config.likelihood, error, dimensions) + config.beta * kl

    error, encoders = bound(mu, logvar)
    variance = 0.5 if config.likelihood == "mse" else optimal_variance(torch.tensor(error), dimensions).item()
    found = [
        refine(network.decoder, *parts, variance, config.beta, generator)
        for parts in zip(images.split(_BATCH), mu.split(_BATCH), logvar.split(_BATCH), strict=True)
    ]
    _, best = bound(*(torch.cat(each) for each in zip(*found, strict=True)))
    gap = encoders - best
    return {"amortization_gap": gap, "amortization_gap_bits_per_dim": gap / dimensions / math.log(2)}


def refine(
    decoder: Callable[[Tensor], Tensor],
    image: Tensor,
    mu: Tensor,
    logvar: Tensor,
    variance: float,
    beta: float,
    generator: torch.Generator,
    steps: int = STEPS,
) -> tuple[Tensor, Tensor]:
    """The mu and logvar (n, latent_dim) of the least negative ELBO of each picture (n, 3, S, S), from given ones.

    variance: of a pixel around its reconstruction. A fresh z is drawn at each step.
    """
    mu, logvar = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
    # A short memory: the first steps have gradients far larger than all later ones.
    optimizer = torch.optim.Adam([mu, logvar], lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z = reparameterize(mu, logvar, torch.randn(mu.shape, generator=generator, device=mu.device))
        error = squared_error(decoder(z), image) / (2 * variance)
        optimizer.zero_grad()
        negative_elbo(error, kl_divergence(mu, logvar), beta).sum().backward()
        optimizer.step()
        schedule.step()
    return mu.detach(), logvar.detach()


@torch.no_grad()
def _mean_error(
    decoder: Callable[[Tensor], Tensor], images: Tensor, mu: Tensor, logvar: Tensor, generator: torch.Generator
) -> float:
    """The mean squared error over pictures and draws."""
    errors = []
    for image, centre, spread in zip(images.split(_BATCH), mu.split(_BATCH), logvar.split(_BATCH), strict=True):
        for _ in range(DRAWS):
            eps = torch.randn(centre.shape, generator=generator, device=centre.device)
            errors.append(squared_error(decoder(reparameterize(centre, spread, eps)), image))
    return torch.cat(errors).double().mean().item()
