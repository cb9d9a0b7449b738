"""Inversion, inpainting, denoising and super-resolution with inverse.onnx, measured and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_runtime.images import Pixels, psnr
from vae_runtime.inversion import fill
from vae_runtime.model import VAE
from vae_runtime.prior import Codes
from vae_train.model.figures import draw_rows

NOISE = 0.2
"""Standard deviation of the noise, for pixels in [0, 1]."""
FACTOR = 8
"""Factor of super-resolution."""
SHOWN = 10
"""Number of pictures in the figure."""


def hidden_quarter(size: int) -> NDArray[np.bool_]:
    """The upper right quarter of a picture, (size, size)."""
    mask = np.zeros((size, size), np.bool_)
    mask[: size // 2, size // 2 :] = True
    return mask


def restore(vae: VAE, originals: Pixels, inverted: Codes, steps: int = 200) -> dict[str, Pixels]:
    """Damaged and restored pictures by name, in the order of the figure's rows: uint8 (n, S, S, 3), n >= 1.

    inverted: the codes (n, latent_dim) of `vae.invert` for the originals. Baselines: the encoder's reconstruction, the
    hole filled with its surroundings' mean color, the encoder's reconstruction of that, bicubic resizing.
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
    """Mean PSNR in dB between the originals and each other result of `restore`; of holes, within the hole."""
    originals = pictures["original"]
    mask = hidden_quarter(originals.shape[1])
    found = {}
    for name, each in pictures.items():
        if name != "original":
            hole = name.startswith("hole") or name == "inpainted"
            pair = (part[:, None, mask] if hole else part for part in (each, originals))
            found[name] = float(psnr(*pair).mean())
    return found


def draw(pictures: dict[str, Pixels], path: Path, caption: str) -> None:
    """Draw the first `SHOWN` pictures of each result of `restore`, one row each."""
    rows = {name: each[:SHOWN] for name, each in pictures.items()}
    draw_rows(path, rows, "Inversion, inpainting, denoising, super-resolution", caption)


def _to_pixels(values: NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
