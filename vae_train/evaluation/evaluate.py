"""Figures of a run (through torch) or of an exported model (through vae_runtime), by the same formulas.

Both are an `Autoencoder`: two functions on float arrays. The noise is drawn here, so it is the same for both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import vae_runtime
from vae_runtime.config import ENCODER_FILE, PRIOR_FILE
from vae_runtime.files import write_atomically
from vae_runtime.prior import Prior
from vae_train.data.faces import Faces, find_avatars, load_faces
from vae_train.engine.runs import find_run, load_run
from vae_train.errors import DataError
from vae_train.evaluation.bound import mean_drawn_error
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
"""Largest number of pictures for the importance-weighted bound: each costs `SAMPLES` decodings."""
COMPARED_IMAGES = 2000
"""Largest number of pictures for a sliced Wasserstein distance."""

_BATCH = 100
_SEED = 0


@dataclass(frozen=True)
class Autoencoder:
    """A model to measure."""

    name: str
    image_size: int
    latent_dim: int
    likelihood: str
    beta: float
    data_sha256: str
    """Digest of its training data."""
    encode: Callable[[Floats], tuple[Floats, Floats]]
    """(n, 3, S, S) in [0, 1] -> mu, logvar"""
    decode: Callable[[Floats], Floats]
    """z (n, latent_dim) -> (n, 3, S, S) in [0, 1]"""
    sample: Callable[[int, int], NDArray[np.uint8]]
    """(n, seed) -> n new faces, uint8 (n, 3, S, S): the model's default sampling"""
    prior: Prior | None = None
    """The fitted prior of an export; None for N(0, I)."""
    data_count: int = 0
    """Number of its training pictures."""


def check_model(path: Path) -> None:
    """Raise UsageError unless `path` is a run, a checkpoint of one, or an exported model."""
    if not (path / ENCODER_FILE).is_file():
        find_run(path)


def open_model(path: Path, device: torch.device) -> Autoencoder:
    """The model in `path`: a run or one of its checkpoints through torch, or an exported folder through vae_runtime."""
    if (path / ENCODER_FILE).is_file():
        return _exported(vae_runtime.VAE.load(path, device=str(device) if device.type == "cuda" else "cpu"))
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

    def sample(count: int, seed: int) -> NDArray[np.uint8]:
        z = torch.from_numpy(Prior.standard(config.latent_dim).sample(count, seed))
        return torch.cat([_to_uint8(torch.from_numpy(decode(part.numpy()))) for part in z.split(_BATCH)]).numpy()

    data, count = saved.state["data"]["sha256"], saved.state["data"]["count"]
    about = (path.name, config.image_size, config.latent_dim, config.likelihood, config.beta)
    return Autoencoder(*about, data, encode, decode, sample, data_count=count)


def _exported(vae: vae_runtime.VAE) -> Autoencoder:
    config = vae.config

    def encode(image: Floats) -> tuple[Floats, Floats]:
        mu, logvar = vae.encoder.run(image)
        return mu, logvar

    def decode(z: Floats) -> Floats:
        return vae.decoder.run(z)[0]

    def sample(count: int, seed: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(vae.sample(count, rng=seed).transpose(0, 3, 1, 2))

    data, count = config.training_data.sha256, config.training_data.count
    about = (config.name, config.image_size, config.latent_dim, config.likelihood, config.beta)
    return Autoencoder(*about, data, encode, decode, sample, vae.prior if PRIOR_FILE in config.files else None, count)


def pictures_of(
    model: Autoencoder, source: str | Sequence[str], avatars: int | None = None
) -> tuple[Faces, NDArray[np.uint8], str]:
    """A source, its pictures to measure on, uint8 (n, 3, S, S), and which these are: "held out" or "all".

    Of the model's own training data these are the held-out ones. avatars: how many to draw, for the source `avatars`;
    by default those that the model was trained on, if it was.
    """
    drawn = (avatars,) if avatars else find_avatars(model.data_sha256, model.data_count) or ()
    faces = load_faces(source, model.image_size, *drawn)
    if faces.matches(model.data_sha256):
        return faces, faces.pixels[faces.held_out()], "held out"
    return faces, faces.pixels, "all"


def evaluate(model: Autoencoder, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """The figures of `model` on pictures, uint8 (n, 3, S, S), n >= 2, as plain numbers; DataError for fewer.

    negative_elbo, reconstruction, kl: nats per image, with one draw of z, under the model's likelihood; the variance of
    a gaussian likelihood is fitted on these pictures. importance_bound: the same with K = 64 over the first
    `importance_images` pictures, comparable with negative_elbo at beta = 1. squared_error: summed over an image.
    bits_per_dim: see `vae_train.model.losses`. psnr (dB) and ssim: of decode(mu), means over the pictures.
    active_units: latents whose mu varies by more than 0.01 (Burda et al. 2016). kl_per_latent: nats. swd_*: sliced
    Wasserstein distance x 1000, a mean over the pyramid, between the pictures and samples (from N(0, I);
    prior_samples: from the fitted prior, if any), reconstructions, and between two halves of the pictures.
    """
    if len(pixels) < 2:
        raise DataError(f"{len(pixels)} pictures to measure on, expected at least 2")
    rng = np.random.default_rng(_SEED)
    batches, weighted = [], []
    bounded = 0
    for start in tqdm(range(0, len(pixels), _BATCH), desc=f"evaluating {model.name}", unit="batch"):
        image = pixels[start : start + _BATCH].astype(np.float32) / np.float32(255)
        target = torch.from_numpy(image)
        mu, logvar = (torch.from_numpy(part) for part in model.encode(image))
        batches.append(_reconstruct(model, target, mu, logvar, rng))
        if take := min(len(image), BOUND_IMAGES - bounded):
            weighted.append(_draw_weighted(model, target[:take], mu[:take], logvar[:take], rng))
            bounded += take
    found = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    per_latent = found["kl"].double().mean(0)
    error, kl = found["error"].double().mean(), per_latent.sum().item()
    dimensions = pixels[0].size
    reconstruction = reconstruction_nats(model.likelihood, error.item(), dimensions)
    variance = optimal_variance(error, dimensions)

    def negative_log_likelihood(squared: Tensor) -> Tensor:
        return squared if model.likelihood == "mse" else gaussian_nll(squared, variance, dimensions)

    bounds = [importance_bound(negative_log_likelihood(part.error), part.z, part.mu, part.logvar) for part in weighted]
    return {
        "images": len(pixels),
        "negative_elbo": reconstruction + model.beta * kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "squared_error": error.item(),
        "bits_per_dim": bits_per_dim(error.item(), kl, dimensions),
        "importance_bound": torch.cat(bounds).double().mean().item(),
        "importance_images": bounded,
        "psnr": found["psnr"].double().mean().item(),
        "ssim": found["ssim"].double().mean().item(),
        "active_units": active_units(found["mu"]),
        **_distances(model, torch.from_numpy(np.ascontiguousarray(pixels)), found["pixels"], rng),
        "kl_per_latent": [round(value, 6) for value in per_latent.tolist()],
    }


def _reconstruct(
    model: Autoencoder, target: Tensor, mu: Tensor, logvar: Tensor, rng: np.random.Generator
) -> dict[str, Tensor]:
    """What is measured of each picture of a batch, by name, (n, ...) each."""
    mean_image = torch.from_numpy(model.decode(mu.numpy()))
    return {
        "mu": mu,
        "kl": kl_per_latent(mu, logvar),
        "error": squared_error(_draw(model, mu, logvar, rng)[1], target),
        "psnr": psnr(mean_image, target),
        "ssim": ssim(mean_image, target),
        "pixels": _to_uint8(mean_image),
    }


class _Weighted(NamedTuple):
    """K codes of each picture for the importance-weighted bound."""

    error: Tensor
    """(K, n)"""
    z: Tensor
    """(K, n, latent_dim)"""
    mu: Tensor
    logvar: Tensor


def _draw_weighted(
    model: Autoencoder, target: Tensor, mu: Tensor, logvar: Tensor, rng: np.random.Generator
) -> _Weighted:
    draws = [_draw(model, mu, logvar, rng) for _ in range(SAMPLES)]
    errors = torch.stack([squared_error(decoded, target) for _, decoded in draws])
    return _Weighted(errors, torch.stack([z for z, _ in draws]), mu, logvar)


def restorations(folder: Path, pixels: NDArray[np.uint8], figure: Path | None = None) -> dict[str, float]:
    """PSNR in dB of pictures, uint8 (n, 3, S, S), inverted, inpainted, denoised and upscaled by an export.

    See `restore`, which also names the baselines. figure: where to draw them. bits_per_dim of inverted: the bound of
    N(inverted code, the encoder's variance); of decode(mu): the encoder's own; both under N(0, I), with equal noise.
    """
    originals = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    with vae_runtime.VAE.load(folder, device="cpu") as vae:
        (mu, logvar), inverted = vae.encode(originals), vae.invert(originals)
        pictures = restore(vae, originals, inverted)
        if figure is not None:
            draw(pictures, figure, f"{vae.config.name}, a quarter hidden, noise {NOISE:g}, drawn by ONNX Runtime")
        codes = {"decode(mu)": mu, "inverted": inverted}
        bounds = {name: _bits(_exported(vae), pixels, code, logvar) for name, code in codes.items()}
    return {
        **{f"psnr of {name}": value for name, value in psnrs(pictures).items()},
        **{f"bits_per_dim of {name}": value for name, value in bounds.items()},
    }


def _bits(model: Autoencoder, pixels: NDArray[np.uint8], mu: Floats, logvar: Floats) -> float:
    """The bound of N(mu, diag(exp(logvar))) on pictures (n, 3, S, S) in bits per dimension, with one draw of z each."""
    rng = np.random.default_rng(_SEED)
    centers, spreads = torch.from_numpy(mu), torch.from_numpy(logvar)
    images = to_unit(torch.from_numpy(np.ascontiguousarray(pixels)))

    def decode(z: Tensor) -> Tensor:
        return torch.from_numpy(model.decode(z.numpy()))

    error = mean_drawn_error(decode, images, centers, spreads, partial(_normal, rng=rng), batch=_BATCH)
    return bits_per_dim(error, kl_per_latent(centers, spreads).sum(1).double().mean().item(), pixels[0].size)


def _normal(like: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32))


def _draw(model: Autoencoder, mu: Tensor, logvar: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """z ~ q(z|x), and its image."""
    z = reparameterize(mu, logvar, _normal(mu, rng))
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
    decibels = ("psnr", "new_faces_nearest_psnr", "new_faces_real_nearest_psnr")
    units = {**dict.fromkeys(nats, "nats"), **dict.fromkeys(decibels, "dB")}
    width = max(map(len, figures)) + 2
    lines = [
        f"{name:<{width}}{value:>10.4f} {units.get(name.split(' of ')[0], '')}".rstrip()
        if isinstance(value, float)
        else f"{name:<{width}}{value:>10}"
        for name, value in figures.items()
        if name != "kl_per_latent"
    ]
    return "\n".join([title, *lines])


def card_section(figures: dict[str, Any], source: str, which: str) -> str:
    """The figures as a section of the model card."""
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
    judged = f"\n\n{_new_faces_section(figures)}" if "new_faces" in figures else ""
    return f"""## Measured on the exported graphs

{figures["images"]} pictures of `{source}` ({which}), through ONNX Runtime. SWD is the sliced Wasserstein distance of
Laplacian-pyramid patches (Karras et al. 2018); the bound is over {figures["importance_images"]} of the pictures, with
{SAMPLES} draws of z each (Burda et al. 2016).

{_table(figures, rows)}{judged}"""


def _new_faces_section(figures: dict[str, Any]) -> str:
    rows = [
        ("FD (Frechet distance; Heusel et al. 2017)", "fd", "{:.1f}"),
        ("KID x 1000 (Binkowski et al. 2018)", "kid", "{:.1f}"),
        ("precision (Kynkaanniemi et al. 2019)", "precision", "{:.3f}"),
        ("recall", "recall", "{:.3f}"),
        ("SWD x 1000", "swd", "{:.1f}"),
        ("share that repeats another new face", "repeats", "{:.3f}"),
        ("share within 20 dB of a training picture", "copies", "{:.3f}"),
        ("the same of real held-out faces", "real_copies", "{:.3f}"),
        ("median PSNR to the nearest training picture, dB", "nearest_psnr", "{:.1f}"),
        ("the same of real held-out faces, dB", "real_nearest_psnr", "{:.1f}"),
    ]
    named = [(name, f"new_faces_{key}", form) for name, key, form in rows]
    return f"""### New faces

{figures["new_faces"]:.0f} samples against as many of these pictures, by the features of an EfficientNet-Lite2 trained
on ImageNet, which no training of this model has used. A face repeats another if it is nearer to it than 99 of 100 real
faces are to each other.

{_table(figures, named)}"""


def _table(figures: dict[str, Any], rows: list[tuple[str, str, str]]) -> str:
    """A Markdown table of those figures that are there. rows: label, name of the figure and its format."""
    lines = [f"| {label} | {form.format(figures[name])} |" for label, name, form in rows if name in figures]
    return "\n".join(["| | |", "|---|---|", *lines])


def save_json(figures: dict[str, Any], path: Path) -> None:
    """Write the figures as JSON."""
    write_atomically(path, json.dumps(figures, indent=1) + "\n")
