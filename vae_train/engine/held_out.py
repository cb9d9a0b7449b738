"""Held-out figures and pictures of a run, after each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime.images import Pixels
from vae_train.config import TrainConfig
from vae_train.engine.rng import HELD_OUT, make_generator
from vae_train.model.figures import FIGURES, draw_curve, draw_faces
from vae_train.model.losses import elbo_terms, kl_divergence, squared_error
from vae_train.model.metrics import active_units, psnr
from vae_train.model.networks import VAE, reparameterize
from vae_train.model.tensors import to_pixels, to_unit

_BATCH = 500


@torch.no_grad()
def evaluate_held_out(model: VAE, pixels: Tensor, config: TrainConfig) -> dict[str, float]:
    """The negative ELBO and its parts on pictures (n, 3, S, S) uint8, with one fixed draw of z for each picture.

    negative_elbo, reconstruction, kl: nats per image. squared_error: its sum, per image. bits_per_dim: see `losses`.
    psnr: dB, of decode(mu), averaged over the pictures. active_units: latents whose mu varies by more than 0.01
    (Burda et al. 2016).
    """
    model.eval()
    noise = make_generator(config.seed, HELD_OUT, 0, pixels.device)
    errors, kls, psnrs, mus = [], [], [], []
    for part in pixels.split(_BATCH):
        image = to_unit(part)
        mu, logvar = model.encoder(image)
        eps = torch.randn(mu.shape, generator=noise, device=pixels.device)
        errors.append(squared_error(model.decoder(reparameterize(mu, logvar, eps)), image))
        kls.append(kl_divergence(mu, logvar))
        psnrs.append(psnr(model.decoder(mu), image))
        mus.append(mu)
    error, kl = (torch.cat(values).double().mean().item() for values in (errors, kls))
    return {
        **elbo_terms(error, kl, pixels[0].numel(), config.likelihood, config.beta),
        "psnr": torch.cat(psnrs).mean().item(),
        "active_units": active_units(torch.cat(mus)),
    }


@torch.no_grad()
def draw(model: VAE, faces: Pixels, history: list[dict[str, Any]], run: Path, config: TrainConfig) -> None:
    """Refresh the figures of a run. faces: uint8 (n, S, S, 3), held out. history: the records of metrics.jsonl."""
    model.eval()
    device = next(model.parameters()).device

    def encode(images: Pixels) -> NDArray[np.float32]:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        mu: NDArray[np.float32] = model.encoder(to_unit(batch))[0].cpu().numpy()
        return mu

    def decode(z: NDArray[np.float32]) -> Pixels:
        return to_pixels(model.decoder(torch.from_numpy(z).to(device)))

    caption = f"{config.preset} {config.image_size}x{config.image_size}, epoch {len(history)}"
    draw_faces(run / FIGURES, faces, encode, decode, caption)
    draw_curve(run / FIGURES, history, caption)
