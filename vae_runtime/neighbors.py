"""Codes of known faces, beside the graphs of a model whose pictures may be shown: which of them is a face most like?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.npz import parse_arrays, save_arrays

NEIGHBOURS_FILE = "neighbours.npz"
"""What the file is called in the model's folder."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Known faces, by name."""

    names: tuple[str, ...]
    """What each is called, "avatars/0/17"."""
    codes: NDArray[np.float32]
    """mu of each: (n, latent_dim)"""

    def __post_init__(self) -> None:
        codes = np.ascontiguousarray(self.codes, np.float32)
        codes.setflags(write=False)
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        if codes.ndim != 2 or len(codes) != len(self.names) or not len(codes):
            raise InputError(f"neighbours: {len(self.names)} names and codes {codes.shape}, expected n >= 1 of both")
        if not np.isfinite(codes).all():
            raise InputError("neighbours: a code is not finite; encode the faces again")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a .npz without pickle; the same faces give the same bytes."""
        return save_arrays(path, {"names": np.array(self.names), "codes": self.codes})

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Neighbours:
        """From the bytes of what `save` wrote; ModelFileError for anything else. name: for messages."""
        arrays = parse_arrays(data, name, {"names": ("U", 1), "codes": ("f", 2)})
        return cls(tuple(arrays["names"].tolist()), arrays["codes"])
