"""Golden vectors: codes and pictures with the outputs of both graphs for them, to verify a device or a runtime.

Export writes them beside the graphs as golden.json. `python -m vae_runtime check` compares this device with them, and
so does the page in the browser. Plain JSON: each array is the base64url of its little-endian bytes, with a SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_runtime.config import GOLDEN_FILE, ModelConfig, Variant
from vae_runtime.errors import ModelFileError
from vae_runtime.images import Pixels
from vae_runtime.model import VAE
from vae_runtime.ort.verify import read_verified
from vae_runtime.prior import Codes

TOLERANCES: dict[Variant | None, tuple[int, float]] = {None: (1, 1e-3), "fp16": (4, 0.02), "int8": (128, 1.0)}
"""Variant -> largest accepted difference of a pixel, of 255, and of an element of mu or logvar.

In float32 a half may be rounded twice; the vectors are those of float32, which the variants approximate: in int8 a few
pixels at edges are far off."""


class Difference(NamedTuple):
    """Largest differences from the golden vectors."""

    pixels: int
    """Of 255."""
    codes: float
    """Of mu and logvar."""

    def within(self, variant: Variant | None = None) -> bool:
        """Whether rounding explains it, or the precision of a smaller variant."""
        pixels, codes = TOLERANCES[variant]
        return self.pixels <= pixels and self.codes <= codes


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

    def check(self, vae: VAE) -> Difference:
        """The largest differences of this model, on its device, from the vectors."""
        pixels = np.abs(vae.decode(self.z).astype(int) - self.image).max()
        codes = np.abs(np.subtract(vae.encode(self.image), (self.mu, self.logvar))).max()
        return Difference(int(pixels), float(codes))

    @classmethod
    def load(cls, folder: Path) -> Golden:
        """The vectors beside the graphs in `folder`; ModelFileError if missing or damaged."""
        config, path = ModelConfig.load(folder), folder / GOLDEN_FILE
        if GOLDEN_FILE not in config.files:
            raise ModelFileError(f"{folder}: no {GOLDEN_FILE} in it, which this needs; export the model again")
        size, code = config.image_size, ("<f4", (config.latent_dim,))
        kinds = {"z": code, "image": ("|u1", (size, size, 3)), "mu": code, "logvar": code}
        try:
            fields = json.loads(read_verified(path, config.files[GOLDEN_FILE]))
            if fields["model_id"] != config.model_id:
                raise ValueError(f"of the model {fields['model_id']!r}")
            arrays = {name: _array(fields, name, *kinds[name]) for name in kinds}
            if len({len(array) for array in arrays.values()}) != 1 or not len(arrays["z"]):
                raise ValueError("no rows, or not as many of each")
            return cls(config.model_id, **arrays)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelFileError(f"{path}: not the golden vectors of this model ({str(error)[:80]})") from error


def _array(fields: dict[str, Any], name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    data = base64.urlsafe_b64decode(fields[name])
    if hashlib.sha256(data).hexdigest() != fields["sha256"][name]:
        raise ValueError(f"{name} is not what its digest says")
    array = np.frombuffer(data, kind).reshape(-1, *shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    return array
