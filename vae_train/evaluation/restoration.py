"""What inverse.onnx is good for, as figures and as a picture: inversion, inpainting, denoising, super-resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_runtime.images import Pixels
from vae_runtime.inversion import fill
from vae_runtime.model import VAE
from vae_runtime.prior import Codes
from vae_train.model.figures import draw_rows

NOISE = 0.2
"""Deviation of the noise, of pixels in [0, 1]."""
FACTOR = 8
"""How many times smaller the small pictures are."""
SHOWN = 10
"""Pictures of the figure."""


def hidden_quarter(size: int) -> NDArray[np.bool_]:
    """The upper right quarter of a picture, (size, size)."""
    mask = np.zeros((size, size), np.bool_)
    mask[: size // 2, size // 2 :] = True
    return mask


def restore(vae: VAE, originals: Pixels, inverted: Codes, steps: int = 200) -> dict[str, Pixels]:
    """uint8 (n, S, S, 3), n >= 1 -> damaged and restored pictures by name, in the order of the figure's rows.

    inverted: what `vae.invert` finds for the originals, (n, latent_dim).
    The rivals: the encoder's reconstruction, the hole's mean colour, the encoder on the picture so filled, bicubic.
    """
    size, mask = vae.image_size, hidden_quarter(vae.image_size)
    hidden = np.broadcast_to(mask, originals.shape[:3])
    filled = fill(originals, hidden, vae.reconstruct, rounds=0)
    rng = np.random.default_rng(0)
    noisy = _to_pixels(originals + 255 * NOISE * rng.standard_normal(originals.shape))
    side = size // FACTOR
    blocks = originals.reshape(-1, side, FACTOR, side, FACTOR, 3)
    small = _to_pixels(blocks.mean(axis=(2, 4)))
    bicubic = [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in small]
    return {
        "original": originals,
        "decode(mu)": vae.reconstruct(originals),
        "inverted": vae.decode(inverted),
        "hole: mean": filled,
        "hole: decode(mu)": np.where(mask[..., None], vae.reconstruct(filled), originals),
        "inpainted": vae.inpaint(originals, mask, steps),
        "noisy": noisy,
        "noisy: decode(mu)": vae.reconstruct(noisy),
        "denoised": vae.decode(vae.invert(noisy, steps=steps)),
        f"1/{FACTOR}: bicubic": np.stack(bicubic),
        "upscaled": vae.upscale(small, side, steps),
    }


def psnrs(pictures: dict[str, Pixels]) -> dict[str, float]:
    """PSNR in dB of what `restore` returns to the originals, means over the pictures; of holes, in the hole."""
    originals = pictures["original"].astype(np.float64) / 255
    mask = hidden_quarter(originals.shape[1])
    found = {}
    for name, each in pictures.items():
        if name != "original":
            error = (each / 255 - originals) ** 2
            if name.startswith("hole") or name == "inpainted":
                error = error[:, mask]
            mean = error.reshape(len(error), -1).mean(axis=1)
            found[name] = float(-10 * np.log10(np.maximum(mean, 1e-12)).mean())
    return found


def draw(pictures: dict[str, Pixels], path: Path, caption: str) -> None:
    """The first `SHOWN` pictures of what `restore` returns, a row a kind."""
    rows = {name: each[:SHOWN] for name, each in pictures.items()}
    draw_rows(path, rows, "Inversion, inpainting, denoising, super-resolution", caption)


def _to_pixels(values: NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
