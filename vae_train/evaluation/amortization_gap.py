"""What amortized inference costs: the bound of the encoder against that of the best mu and logvar for each picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_train.engine.runs import load_run
from vae_train.evaluation.bound import mean_drawn_error
from vae_train.export.fit_latents import encode
from vae_train.model.losses import kl_divergence, negative_elbo, optimal_variance, reconstruction_nats, squared_error
from vae_train.model.networks import reparameterize
from vae_train.model.tensors import to_unit

STEPS = 200
LEARNING_RATE = 0.05
"""Adam's initial learning rate; it follows a cosine to 0."""
DRAWS = 16
"""Codes drawn for each picture when a bound is measured."""

_BATCH = 100


def amortization_gap(path: Path, pixels: NDArray[np.uint8], device: torch.device) -> dict[str, float]:
    """The amortization gap of the run or checkpoint in `path` on pictures, uint8 (n, 3, S, S).

    amortization_gap: the negative ELBO of the encoder's q(z|x) minus that of the best diagonal Gaussian that gradient
    descent finds for each picture, in nats per image; amortization_gap_bits_per_dim: the same in bits. Both use the
    run's likelihood and beta; the variance of a gaussian likelihood is fitted to each. Cremer, Li, Duvenaud, "Inference
    suboptimality in variational autoencoders" (2018), section 3.
    """
    config, _, network = load_run(path)
    network.requires_grad_(False).to(device)
    images = to_unit(torch.from_numpy(np.array(pixels)).to(device))
    dimensions, generator = images[0].numel(), torch.Generator(device).manual_seed(0)
    codes = encode(network, pixels)
    mu, logvar = (torch.from_numpy(each).to(device) for each in (codes.mu, codes.logvar))

    def bound(mu: Tensor, logvar: Tensor) -> tuple[float, float]:
        noise = partial(_normal, generator=torch.Generator(device).manual_seed(1))
        error = mean_drawn_error(network.decoder, images, mu, logvar, noise, DRAWS, _BATCH)
        kl = kl_divergence(mu, logvar).mean().item()
        return error, reconstruction_nats(config.likelihood, error, dimensions) + config.beta * kl

    error, amortized = bound(mu, logvar)
    variance = 0.5 if config.likelihood == "mse" else optimal_variance(torch.tensor(error), dimensions).item()
    found = [
        fit_posteriors(network.decoder, *parts, variance, config.beta, generator)
        for parts in zip(images.split(_BATCH), mu.split(_BATCH), logvar.split(_BATCH), strict=True)
    ]
    _, best = bound(*(torch.cat(each) for each in zip(*found, strict=True)))
    gap = amortized - best
    return {"amortization_gap": gap, "amortization_gap_bits_per_dim": gap / dimensions / math.log(2)}


def fit_posteriors(
    decoder: Callable[[Tensor], Tensor],
    image: Tensor,
    mu: Tensor,
    logvar: Tensor,
    variance: float,
    beta: float,
    generator: torch.Generator,
    steps: int = STEPS,
) -> tuple[Tensor, Tensor]:
    """The mu and logvar (n, latent_dim) that minimize the negative ELBO of each picture (n, 3, S, S), from given ones.

    variance: of a pixel around its reconstruction. A new z is drawn at each step.
    """
    mu, logvar = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
    # A low beta2: the gradients of the first steps are far larger than all later ones.
    optimizer = torch.optim.Adam([mu, logvar], lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z = reparameterize(mu, logvar, _normal(mu, generator))
        error = squared_error(decoder(z), image) / (2 * variance)
        optimizer.zero_grad()
        negative_elbo(error, kl_divergence(mu, logvar), beta).sum().backward()
        optimizer.step()
        schedule.step()
    return mu.detach(), logvar.detach()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)
