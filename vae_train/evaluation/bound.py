"""The squared error of codes that are drawn from q(z|x): what every bound on the likelihood is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vae_train.model.losses import squared_error
from vae_train.model.networks import reparameterize


@torch.no_grad()
def mean_drawn_error(
    decode: Callable[[Tensor], Tensor],
    images: Tensor,
    mu: Tensor,
    logvar: Tensor,
    noise: Callable[[Tensor], Tensor],
    draws: int = 1,
    batch: int = 100,
) -> float:
    """The squared error of decode(z), z ~ N(mu, diag(exp(logvar))), a mean over images and draws.

    images: (n, 3, S, S) in [0, 1]; mu, logvar: (n, latent_dim). noise: standard normal values in the shape of its
    argument, called once a batch and draw.
    """
    errors = []
    for image, center, spread in zip(images.split(batch), mu.split(batch), logvar.split(batch), strict=True):
        for _ in range(draws):
            errors.append(squared_error(decode(reparameterize(center, spread, noise(center))), image))
    return torch.cat(errors).double().mean().item()
