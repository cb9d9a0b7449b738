"""class VAE: two graphs and their config behind the verbs encode, decode, reconstruct, sample, interpolate."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vae_runtime import latent
from vae_runtime.config import DECODER_FILE, ENCODER_FILE, ModelConfig
from vae_runtime.errors import ImageError, InputError, InputTypeError, ModelFileError
from vae_runtime.hub import HUB_PREFIX, download
from vae_runtime.images import ImageSource, Pixels, fit_square, load_image
from vae_runtime.latent import Method, Rng
from vae_runtime.prior import sample_prior
from vae_runtime.session import Graph, parse_device, read_graph

Images: TypeAlias = ImageSource | Iterable[ImageSource]
Codes: TypeAlias = NDArray[np.float32]

DEFAULT_MODEL = "anime-32"
"""The exported model that `VAE.load()` opens."""


def bundled_model() -> Path:
    """The folder of the default model: inside the installed package, or `exported/` in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "exported" / DEFAULT_MODEL, package.parent / "exported" / DEFAULT_MODEL):
        if folder.is_dir():
            return folder
    raise ModelFileError(f"the bundled model {DEFAULT_MODEL} is not in this installation; install anime-vae again")


class VAE:
    """An exported variational autoencoder.

    Attributes: config (ModelConfig), encoder and decoder (Graph: float32 NCHW in and out), device ("cpu", "cuda:0").
    """

    def __init__(self, encoder: Graph, decoder: Graph, config: ModelConfig) -> None:
        """Join two open graphs; ModelFileError unless they keep the contract and come from one export."""
        picture = (config.channels, config.image_size, config.image_size)
        code = (config.latent_dim,)
        encoder.check_contract({"image": picture}, {"mu": code, "logvar": code})
        decoder.check_contract({"z": code}, {"image": picture})
        for graph in (encoder, decoder):
            found = graph.metadata.get("model_id")
            if found != config.model_id:
                raise ModelFileError(
                    f"{graph.name}: of the model {found!r}, config.json says {config.model_id!r}; "
                    "take all three files from one export"
                )
        self.encoder, self.decoder, self.config = encoder, decoder, config

    @classmethod
    def load(cls, model: str | os.PathLike[str] | None = None, *, device: str = "auto") -> VAE:
        """Open a model.

        model: None for the bundled one, a folder, or "hf:owner/name[@revision]" (needs the extra `hub`).
        device: "cpu", "cuda" or "cuda:n" (strict: DeviceError if it cannot be had), or "auto": CUDA where a session
        really runs on it, else the CPU with one DeviceWarning that names the cause.
        Every digest of config.json is checked before a graph is opened. Raises ModelFileError, ConfigError.
        """
        parse_device(device)
        folder = _resolve(model)
        config = ModelConfig.load(folder)
        if config.prior is not None:
            raise ModelFileError(f"{folder}: has the fitted prior {config.prior}; it needs a newer vae_runtime")
        encoder, decoder = (_verified(folder, file, config) for file in (ENCODER_FILE, DECODER_FILE))
        return cls(
            Graph(encoder, str(folder / ENCODER_FILE), device),
            Graph(decoder, str(folder / DECODER_FILE), device),
            config,
        )

    @property
    def device(self) -> str:
        """Where the graphs really run, read from their sessions."""
        return self.encoder.device if self.encoder.device == self.decoder.device else "cpu"

    @property
    def latent_dim(self) -> int:
        """Length of a code."""
        return self.config.latent_dim

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels."""
        return self.config.image_size

    def __repr__(self) -> str:
        size, dim = self.image_size, self.latent_dim
        return f"VAE({self.config.name!r}, image_size={size}, latent_dim={dim}, device={self.device!r})"

    def prepare(self, images: Images) -> Pixels:
        """The pictures as the model sees them: uint8 (n, S, S, 3), each cut to its central square and resampled.

        images: one picture or any iterable of them; see `vae_runtime.images.load_image` for what a picture is.
        An error names the position of the picture that caused it.
        """
        prepared = []
        for index, source in enumerate(_each(images)):
            try:
                prepared.append(fit_square(load_image(source), self.image_size))
            except ImageError as error:
                error.args = (f"images[{index}]: {error.args[-1]}",)
                raise
        return np.stack(prepared) if prepared else np.empty((0, self.image_size, self.image_size, 3), np.uint8)

    def encode(self, images: Images) -> tuple[Codes, Codes]:
        """mu and logvar of q(z|x), float32 (n, latent_dim) each; n is 1 for a single picture, 0 for an empty list."""
        pixels = self.prepare(images)
        mu, logvar = self.encoder.run(_to_unit(pixels))
        return mu, logvar

    def decode(self, z: ArrayLike) -> Pixels:
        """The pictures of codes z (n, latent_dim) or (latent_dim,): uint8 (n, S, S, 3)."""
        codes = latent.as_latent(z, "z")
        codes = codes[None] if codes.ndim == 1 else codes
        if codes.ndim != 2 or codes.shape[1] != self.latent_dim:
            raise InputError(f"z: got the shape {np.shape(z)}, expected (n, {self.latent_dim})")
        (pictures,) = self.decoder.run(np.ascontiguousarray(codes, dtype=np.float32))
        return _to_pixels(pictures)

    def reconstruct(self, images: Images) -> Pixels:
        """decode(mu): no noise, so the same picture gives the same answer every time. uint8 (n, S, S, 3)."""
        return self.decode(self.encode(images)[0])

    def sample(self, n: int = 16, rng: Rng = None, temperature: float = 1.0) -> Pixels:
        """`n` new faces, z from the prior: uint8 (n, S, S, 3). rng: a seed, a numpy Generator, or None."""
        return self.decode(sample_prior(n, self.latent_dim, rng, temperature))

    def interpolate(self, a: ImageSource, b: ImageSource, steps: int = 8, method: Method = "slerp") -> Pixels:
        """The way from picture `a` to picture `b` through latent space: uint8 (steps, S, S, 3), ends included."""
        latent.check_count(steps, "steps", 2, latent.MAX_STEPS)
        mu, _ = self.encode([a, b])
        return self.decode(latent.interpolate(mu[0], mu[1], steps, method))


def _resolve(model: str | os.PathLike[str] | None) -> Path:
    if model is None:
        return bundled_model()
    if not isinstance(model, (str, os.PathLike)):
        raise InputTypeError(f"model: got {type(model).__name__}, expected a folder, 'hf:owner/name' or None")
    if str(model).startswith(HUB_PREFIX):
        return download(str(model), kind="model", patterns=["config.json", "*.onnx"])
    folder = Path(model)
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise ModelFileError(f"{folder}: {what}, expected one with config.json, {ENCODER_FILE} and {DECODER_FILE}")
    return folder


def _verified(folder: Path, file: str, config: ModelConfig) -> bytes:
    data = read_graph(folder, file)
    if hashlib.sha256(data).hexdigest() != config.files[file]:
        raise ModelFileError(
            f"{folder / file}: its SHA-256 is not the one in config.json; it is damaged, truncated or of another export"
        )
    return data


def _each(images: Images) -> Iterable[ImageSource]:
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return iter(images)
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)):
        return [images]
    if not isinstance(images, Iterable):
        raise InputTypeError(f"images: got {type(images).__name__}, expected a picture or an iterable of pictures")
    return images


def _to_unit(pixels: Pixels) -> NDArray[np.float32]:
    """uint8 (n, S, S, 3) -> float32 (n, 3, S, S) in [0, 1]"""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def _to_pixels(pictures: NDArray[np.float32]) -> Pixels:
    """float32 (n, 3, S, S) in [0, 1] -> uint8 (n, S, S, 3)"""
    rounded = np.rint(np.clip(pictures, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(rounded.transpose(0, 2, 3, 1))
