"""Figures of a run, through torch, or of an exported model, through vae_runtime, by the same formulas.

Both are an `Autoencoder`: two functions on float arrays. The noise is drawn here, so both see the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import vae_runtime
from vae_runtime.config import ENCODER_FILE, PRIOR_FILE
from vae_runtime.prior import Prior
from vae_train.config import TrainConfig
from vae_train.data.faces import Faces, load_faces
from vae_train.engine.runs import find_run, load_run
from vae_train.errors import DataError
from vae_train.evaluation.restoration import NOISE, draw, psnrs, restore
from vae_train.model.losses import (
    bits_per_dim,
    gaussian_nll,
    kl_per_latent,
    optimal_variance,
    reconstruction_nats,
    squared_error,
)
from vae_train.model.metrics import active_units, importance_bound, psnr, sliced_wasserstein, ssim
from vae_train.model.networks import reparameterize
from vae_train.model.tensors import to_unit

Floats: TypeAlias = NDArray[np.float32]

SAMPLES = 64
"""K of the importance-weighted bound."""
BOUND_IMAGES = 500
"""Most pictures that the importance-weighted bound is taken over: each costs `SAMPLES` decodings."""
COMPARED_IMAGES = 2000
"""Most pictures that enter a sliced Wasserstein distance."""

_BATCH = 100
_SEED = 0


@dataclass(frozen=True)
class Autoencoder:
    """What is measured."""

    name: str
    image_size: int
    latent_dim: int
    likelihood: str
    beta: float
    data_sha256: str
    """Digest of the source that it was trained on."""
    encode: Callable[[Floats], tuple[Floats, Floats]]
    """(n, 3, S, S) in [0, 1] -> mu, logvar"""
    decode: Callable[[Floats], Floats]
    """z (n, latent_dim) -> (n, 3, S, S) in [0, 1]"""
    prior: Prior | None = None
    """The fitted one of an export; None for N(0, I)."""


def check_model(path: Path) -> None:
    """Raise UsageError unless `path` is a run, a checkpoint of one, or an exported model."""
    if not (path / ENCODER_FILE).is_file():
        find_run(path)


def open_model(path: Path, device: torch.device) -> Autoencoder:
    """The model in `path`: a run or one of its checkpoints through torch, or an exported folder through vae_runtime."""
    if (path / ENCODER_FILE).is_file():
        return _played(vae_runtime.VAE.load(path, device=str(device) if device.type == "cuda" else "cpu"))
    config, saved, network = load_run(path)
    network.to(device)

    @torch.no_grad()
    def encode(image: Floats) -> tuple[Floats, Floats]:
        mu, logvar = network.encoder(torch.from_numpy(image).to(device))
        return mu.cpu().numpy(), logvar.cpu().numpy()

    @torch.no_grad()
    def decode(z: Floats) -> Floats:
        image: Floats = network.decoder(torch.from_numpy(z).to(device)).cpu().numpy()
        return image

    data = saved.state["data"]["sha256"]
    return Autoencoder(
        path.name, config.image_size, config.latent_dim, config.likelihood, config.beta, data, encode, decode
    )


def _played(player: vae_runtime.VAE) -> Autoencoder:
    config = player.config

    def encode(image: Floats) -> tuple[Floats, Floats]:
        mu, logvar = player.encoder.run(image)
        return mu, logvar

    def decode(z: Floats) -> Floats:
        return player.decoder.run(z)[0]

    data = config.training_data.sha256
    about = (config.name, config.image_size, config.latent_dim, config.likelihood, config.beta)
    return Autoencoder(*about, data, encode, decode, player.prior if PRIOR_FILE in config.files else None)


def pictures_of(
    model: Autoencoder, source: str, avatars: int = TrainConfig.avatars
) -> tuple[Faces, NDArray[np.uint8], str]:
    """The source, the pictures (n, 3, S, S) to measure on, and a word for which they are. avatars: how many it draws.

    Of the source that the model was trained on, these are the held-out ones; of any other source, all.
    """
    faces = load_faces(source, model.image_size, avatars)
    if faces.matches(model.data_sha256):
        return faces, faces.pixels[faces.held_out()], "held out"
    return faces, faces.pixels, "all"


def evaluate(model: Autoencoder, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """The figures of `model` on pictures (n, 3, S, S), n >= 2, as plain numbers.

    negative_elbo, reconstruction, kl: nats per image, of one draw of z, under the model's likelihood; the variance of
    a gaussian one is fitted on these pictures. importance_bound: the same, K = 64, over `importance_images` pictures,
    to be compared with negative_elbo at beta = 1. squared_error: its sum. bits_per_dim: see `losses`. psnr
    (dB) and ssim: of decode(mu), means over the pictures. active_units: latents whose mu varies by more than 0.01
    (Burda et al. 2016). kl_per_latent: nats. swd_*: sliced Wasserstein distance x 1000, the mean over the pyramid, of
    samples (z from N(0, I); prior_samples: from the fitted prior, where there is one) and of reconstructions to the
    pictures, and of one half of the pictures to the other.
    """
    if len(pixels) < 2:
        raise DataError(f"{len(pixels)} pictures to measure on, at least 2 are needed")
    rng = np.random.default_rng(_SEED)
    errors, kls, mus, psnrs, ssims, weighed, rebuilt = [], [], [], [], [], [], []
    bounded = 0
    for start in tqdm(range(0, len(pixels), _BATCH), desc=f"evaluating {model.name}", unit="batch"):
        image = pixels[start : start + _BATCH].astype(np.float32) / np.float32(255)
        mu, logvar = (torch.from_numpy(part) for part in model.encode(image))
        target = torch.from_numpy(image)
        mean_image = torch.from_numpy(model.decode(mu.numpy()))
        errors.append(squared_error(_draw(model, mu, logvar, rng)[1], target))
        kls.append(kl_per_latent(mu, logvar))
        mus.append(mu)
        psnrs.append(psnr(mean_image, target))
        ssims.append(ssim(mean_image, target))
        rebuilt.append(_to_uint8(mean_image))
        if take := min(len(image), BOUND_IMAGES - bounded):
            draws = [_draw(model, mu[:take], logvar[:take], rng) for _ in range(SAMPLES)]
            squared = torch.stack([squared_error(decoded, target[:take]) for _, decoded in draws])
            weighed.append((squared, torch.stack([z for z, _ in draws]), mu[:take], logvar[:take]))
            bounded += take
    per_latent = torch.cat(kls).double().mean(0)
    error, kl = torch.cat(errors).double().mean(), per_latent.sum().item()
    reconstruction = reconstruction_nats(model.likelihood, error.item(), pixels[0].size)
    variance = optimal_variance(error, pixels[0].size)
    bounds = [
        importance_bound(
            squared if model.likelihood == "mse" else gaussian_nll(squared, variance, pixels[0].size), z, mu, logvar
        )
        for squared, z, mu, logvar in weighed
    ]
    return {
        "images": len(pixels),
        "negative_elbo": reconstruction + model.beta * kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "squared_error": error.item(),
        "bits_per_dim": bits_per_dim(error.item(), kl, pixels[0].size),
        "importance_bound": torch.cat(bounds).double().mean().item(),
        "importance_images": bounded,
        "psnr": torch.cat(psnrs).double().mean().item(),
        "ssim": torch.cat(ssims).double().mean().item(),
        "active_units": active_units(torch.cat(mus)),
        **_distances(model, torch.from_numpy(np.ascontiguousarray(pixels)), torch.cat(rebuilt), rng),
        "kl_per_latent": [round(value, 6) for value in per_latent.tolist()],
    }


def restorations(folder: Path, pixels: NDArray[np.uint8], figure: Path | None = None) -> dict[str, float]:
    """PSNR in dB of pictures (n, 3, S, S) inverted, inpainted, denoised and upscaled by an export, and of its rivals.

    See `restore`. figure: where to draw them. bits_per_dim of inverted: the bound of N(inverted code, the encoder's
    variance), and of decode(mu), the encoder's own, both under N(0, I) and with the same noise.
    """
    originals = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    with vae_runtime.VAE.load(folder, device="cpu") as vae:
        (mu, logvar), inverted = vae.encode(originals), vae.invert(originals)
        pictures = restore(vae, originals, inverted)
        if figure is not None:
            draw(pictures, figure, f"{vae.config.name}, a quarter hidden, noise {NOISE:g}, drawn by ONNX Runtime")
        codes = {"decode(mu)": mu, "inverted": inverted}
        bounds = {name: _bits(_played(vae), pixels, code, logvar) for name, code in codes.items()}
    return {
        **{f"psnr of {name}": value for name, value in psnrs(pictures).items()},
        **{f"bits_per_dim of {name}": value for name, value in bounds.items()},
    }


def _bits(model: Autoencoder, pixels: NDArray[np.uint8], mu: Floats, logvar: Floats) -> float:
    """The bound of N(mu, diag(exp(logvar))) on pictures (n, 3, S, S), in bits per dimension; one draw of z each."""
    rng, errors = np.random.default_rng(_SEED), []
    for start in range(0, len(pixels), _BATCH):
        part = slice(start, start + _BATCH)
        decoded = _draw(model, torch.from_numpy(mu[part]), torch.from_numpy(logvar[part]), rng)[1]
        errors.append(squared_error(decoded, to_unit(torch.from_numpy(pixels[part]))))
    kl = kl_per_latent(torch.from_numpy(mu), torch.from_numpy(logvar)).sum(1)
    return bits_per_dim(torch.cat(errors).double().mean().item(), kl.double().mean().item(), pixels[0].size)


def _draw(model: Autoencoder, mu: Tensor, logvar: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """z ~ q(z|x), and its picture."""
    z = reparameterize(mu, logvar, torch.from_numpy(rng.standard_normal(mu.shape, dtype=np.float32)))
    return z, torch.from_numpy(model.decode(z.numpy()))


def _to_uint8(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _distances(model: Autoencoder, real: Tensor, rebuilt: Tensor, rng: np.random.Generator) -> dict[str, float]:
    count = min(len(real), COMPARED_IMAGES)
    parts = -(-count // _BATCH)
    priors = {"samples": Prior.standard(model.latent_dim)}
    if model.prior:
        priors["prior_samples"] = model.prior
    drawn = {
        f"swd_{name}": torch.cat([_to_uint8(torch.from_numpy(model.decode(part))) for part in np.array_split(z, parts)])
        for name, z in ((name, prior.sample(count, rng)) for name, prior in priors.items())
    }
    half = count // 2
    pairs = {
        **{name: (samples, real[:count]) for name, samples in drawn.items()},
        "swd_reconstructions": (rebuilt[:count], real[:count]),
        "swd_real_halves": (real[:half], real[half : 2 * half]),
    }
    return {name: float(np.mean(list(sliced_wasserstein(*pair).values()))) for name, pair in pairs.items()}


def as_table(figures: dict[str, Any], title: str) -> str:
    """The figures as lines of text, with their units."""
    nats = ("negative_elbo", "reconstruction", "kl", "importance_bound", "amortization_gap")
    units = {**dict.fromkeys(nats, "nats"), "psnr": "dB"}
    width = max(map(len, figures)) + 2
    lines = [
        f"{name:<{width}}{value:>10.4f} {units.get(name.split(' of ')[0], '')}".rstrip()
        if isinstance(value, float)
        else f"{name:<{width}}{value:>10}"
        for name, value in figures.items()
        if name != "kl_per_latent"
    ]
    return "\n".join([title, *lines])


def card_chapter(figures: dict[str, Any], source: str, which: str) -> str:
    """The figures as a chapter of a model card."""
    rows = [
        ("bits per dimension", "bits_per_dim", "{:.3f}"),
        ("negative ELBO, nats", "negative_elbo", "{:.1f}"),
        ("of it the KL divergence, nats", "kl", "{:.1f}"),
        ("importance-weighted bound, nats", "importance_bound", "{:.1f}"),
        ("PSNR of decode(mu), dB", "psnr", "{:.2f}"),
        ("SSIM of decode(mu)", "ssim", "{:.3f}"),
        ("active units", "active_units", "{:d}"),
        ("SWD x 1000, samples from N(0, I)", "swd_samples", "{:.1f}"),
        ("SWD x 1000, samples from the fitted prior", "swd_prior_samples", "{:.1f}"),
        ("SWD x 1000, reconstructions", "swd_reconstructions", "{:.1f}"),
        ("SWD x 1000, one half of the pictures to the other", "swd_real_halves", "{:.1f}"),
    ]
    lines = [f"| {name} | {form.format(figures[key])} |" for name, key, form in rows if key in figures]
    table = "\n".join(["| | |", "|---|---|", *lines])
    return f"""## Measured on the exported graphs

{figures["images"]} pictures of `{source}` ({which}), through ONNX Runtime. SWD is the sliced Wasserstein distance of
Laplacian-pyramid patches (Karras et al. 2018); the bound is over {figures["importance_images"]} of the pictures, with
{SAMPLES} draws of z each (Burda et al. 2016).

{table}"""


def save_json(figures: dict[str, Any], path: Path) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
