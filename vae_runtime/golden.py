"""Golden vectors: codes and pictures, each with what the graphs make of it, for every front end to check itself by.

Export writes them beside the graphs as `golden.json`, one of the `files` of config.json. Python compares itself with
them (`python -m vae_runtime check`), and so does the page in the browser. Plain JSON: each array is the base64url of
its little-endian bytes, with their SHA-256.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_runtime.config import ModelConfig
from vae_runtime.errors import ModelFileError
from vae_runtime.images import Pixels
from vae_runtime.model import VAE
from vae_runtime.ort.verify import read_verified
from vae_runtime.prior.mixture import Codes

GOLDEN_FILE = "golden.json"
COUNT = 4
SEED = 2026
PIXEL_TOLERANCE = 1
"""Largest difference of a pixel, of 255, between two machines that both run the graphs right: a half rounded twice."""
CODE_TOLERANCE = 1e-3
"""Largest difference of a number of mu or logvar."""


class Difference(NamedTuple):
    """How far a front end is from the vectors, at most."""

    pixels: int
    """Of 255."""
    codes: float
    """Of mu and logvar."""

    @property
    def tolerable(self) -> bool:
        """Whether rounding explains it."""
        return self.pixels <= PIXEL_TOLERANCE and self.codes <= CODE_TOLERANCE


@dataclass(frozen=True, eq=False)
class Golden:
    """Codes with the pictures that they decode to, and those pictures with the codes that they encode to."""

    model_id: str
    z: Codes
    """(n, latent_dim), from the prior."""
    image: Pixels
    """decode(z), uint8 (n, S, S, 3)."""
    mu: Codes
    """Of encode(image), (n, latent_dim)."""
    logvar: Codes
    """Of encode(image), (n, latent_dim)."""

    @classmethod
    def make(cls, vae: VAE) -> Golden:
        """The vectors of a model; on one machine, the same model gives the same bits."""
        z = vae.prior.sample(COUNT, SEED)
        image = vae.decode(z)
        return cls(vae.config.model_id, z, image, *vae.encode(image))

    def check(self, vae: VAE) -> Difference:
        """How far this model, on its device, is from the vectors."""
        mu, logvar = vae.encode(self.image)
        pixels = np.abs(vae.decode(self.z).astype(int) - self.image).max()
        return Difference(int(pixels), float(max(np.abs(mu - self.mu).max(), np.abs(logvar - self.logvar).max())))

    def to_json(self) -> str:
        """The text of golden.json."""
        arrays = {name: getattr(self, name).tobytes() for name in ("z", "image", "mu", "logvar")}
        fields: dict[str, Any] = {"model_id": self.model_id}
        # base64url, for its letters never look like a path, and of those none may be in a file that is published.
        fields |= {name: base64.urlsafe_b64encode(data).decode() for name, data in arrays.items()}
        fields["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in arrays.items()}
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def load(cls, folder: Path) -> Golden:
        """The vectors beside the graphs in `folder`; ModelFileError where there are none, or none that fit."""
        config, path = ModelConfig.load(folder), folder / GOLDEN_FILE
        if GOLDEN_FILE not in config.files:
            raise ModelFileError(f"{folder}: no {GOLDEN_FILE} in it; export again, or call vae_runtime.golden.write")
        size, code = config.image_size, ("<f4", (config.latent_dim,))
        kinds = {"z": code, "image": ("|u1", (size, size, 3)), "mu": code, "logvar": code}
        try:
            fields = json.loads(read_verified(path, config.files[GOLDEN_FILE]))
            if fields["model_id"] != config.model_id:
                raise ValueError(f"of the model {fields['model_id']!r}")
            return cls(config.model_id, **{name: _array(fields, name, *kinds[name]) for name in kinds})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelFileError(f"{path}: not the golden vectors of this model ({str(error)[:80]})") from error


def write(folder: Path) -> ModelConfig:
    """Make the vectors of the model in `folder`, on the CPU, and name them in its config.json, which is returned.

    No other file is touched.
    """
    with VAE.load(folder, device="cpu", threads=1) as vae:
        data = Golden.make(vae).to_json().encode()
        (folder / GOLDEN_FILE).write_bytes(data)
        files = {**vae.config.files, GOLDEN_FILE: hashlib.sha256(data).hexdigest()}
        config = dataclasses.replace(vae.config, files=files)
    config.save(folder)
    return config


def _array(fields: dict[str, Any], name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    data = base64.urlsafe_b64decode(fields[name])
    if hashlib.sha256(data).hexdigest() != fields["sha256"][name]:
        raise ValueError(f"{name} is not what its digest says")
    return np.frombuffer(data, kind).reshape(-1, *shape)
