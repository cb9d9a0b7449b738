"""The parity gate: an export is published only if vae_runtime computes what the torch model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

import vae_runtime
from vae_runtime.config import INVERSE_FILE
from vae_train.errors import ExportError
from vae_train.model.networks import VAE

Array: TypeAlias = NDArray[np.floating[Any]]

TOLERANCE = 1e-5
"""Largest difference between torch and vae_runtime that is published; relative to values larger than 1."""
GRADIENT_OUTLIER_TOLERANCE = 0.01
"""Largest relative difference of a single gradient of inverse.onnx; see `check_gradient`."""

_BATCHES = (1, 2, 5)


def check_parity(model: VAE, folder: Path) -> float:
    """The largest difference between `model` and the graphs in `folder`; ExportError above `TOLERANCE`.

    A difference is relative to the largest value of its tensor where that is above 1: float32 rounds large codes more
    coarsely. inverse.onnx is compared, too: see `check_gradient`.
    """
    size, dim = model.image_size, model.latent_dim
    rng = np.random.default_rng(0)
    worst = 0.0
    with vae_runtime.VAE.load(folder, device="cpu") as vae:
        for batch in _BATCHES:
            image = rng.random((batch, 3, size, size), dtype=np.float32)
            z = rng.standard_normal((batch, dim), dtype=np.float32)
            with torch.no_grad():
                expected = [*model.encoder(torch.from_numpy(image)), model.decoder(torch.from_numpy(z))]
            found = [*vae.encoder.run(image), *vae.decoder.run(z)]
            for name, wanted, got in zip(("mu", "logvar", "image"), expected, found, strict=True):
                worst = max(worst, _compare(f"{name} at batch {batch}", wanted.numpy(), got))
        check_gradient(model, vae)
    return worst


def _compare(name: str, expected: Array, found: Array) -> float:
    size = float(np.abs(expected).max())
    if not np.isfinite(size):
        raise ExportError(
            f"{name}: the model's output is not finite, so the run has diverged; export an earlier checkpoint, "
            "or train again with a lower --learning-rate; nothing was published"
        )
    difference = float(np.abs(expected - found).max()) / max(1.0, size)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"{name}: torch and ONNX Runtime differ by {difference:.2g} for values up to {max(1.0, size):.2g}, "
            f"expected at most {TOLERANCE:g}; nothing was published"
        )
    return difference


def check_gradient(model: VAE, vae: vae_runtime.VAE) -> float:
    """The relative difference between inverse.onnx and torch's autograd: the larger of all losses and the median
    gradient.

    Where the input of a LeakyReLU is 0 up to rounding, torch and ONNX Runtime may take different slopes, and a whole
    gradient differs a little although neither is wrong. So every loss and the median gradient must agree to
    `TOLERANCE`, and each gradient to `GRADIENT_OUTLIER_TOLERANCE`; ExportError otherwise.
    """
    rng, size = np.random.default_rng(1), model.image_size
    losses, gradients = [], []
    for batch in _BATCHES:
        z = rng.standard_normal((batch, model.latent_dim), dtype=np.float32)
        image = rng.random((batch, 3, size, size), dtype=np.float32)
        weight = rng.random((batch, 1, size, size), dtype=np.float32)
        code = torch.from_numpy(z).requires_grad_()
        squares = torch.from_numpy(weight) * (model.decoder(code) - torch.from_numpy(image)).square()
        loss = squares.flatten(1).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), code)
        found_loss, found_gradient = vae.inverse.run(z, image, weight)
        losses.append(_relative(loss.detach().numpy()[:, None], found_loss[:, None]))
        gradients.append(_relative(gradient.numpy(), found_gradient))
    worst, relative = np.concatenate(losses).max(), np.concatenate(gradients)
    for name, difference, limit in (
        ("loss", worst, TOLERANCE),
        ("gradient", np.median(relative), TOLERANCE),
        ("gradient", relative.max(), GRADIENT_OUTLIER_TOLERANCE),
    ):
        if not difference <= limit:
            raise ExportError(
                f"{name} of {INVERSE_FILE}: torch and ONNX Runtime differ by {difference:.2g} of its size, "
                f"expected at most {limit:g}; nothing was published"
            )
    return float(max(worst, np.median(relative)))


def _relative(expected: Array, found: Array) -> Array:
    """The largest difference of each row, divided by the largest value of all: (n, k) twice -> (n,)."""
    differences: Array = np.abs(expected - found).max(axis=1) / np.abs(expected).max()
    return differences
