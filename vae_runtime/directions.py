"""Named vectors in latent space: directions to edit along (smile, hair), and the codes of known faces (neighbors)."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_runtime.checks import frozen_copy
from vae_runtime.errors import InputError
from vae_runtime.npz import parse_arrays, read_file, save_arrays

MAX_DIRECTIONS = 4096
"""Most directions of one file."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions by name. Strength 1 is one standard deviation of the codes along them, which is their length."""

    names: tuple[str, ...]
    """Names, as "smile"."""
    vectors: NDArray[np.float32]
    """(n, latent_dim)"""

    def __post_init__(self) -> None:
        vectors = frozen_copy(self.vectors)
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        if vectors.ndim != 2 or len(vectors) != len(self.names) or not 1 <= len(vectors) <= MAX_DIRECTIONS:
            raise InputError(
                f"directions: {len(self.names)} names and vectors {vectors.shape}, expected n of both, "
                f"n from 1 to {MAX_DIRECTIONS}"
            )
        if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
            raise InputError("directions: expected finite, nonzero vectors; fit them again")
        if len(set(self.names)) != len(self.names) or not all(name and name.isprintable() for name in self.names):
            raise InputError(f"directions: the names {self.names[:8]} are empty, repeated or not printable")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The vector (latent_dim,) of a name; InputError suggests the nearest name for an unknown one."""
        if name in self.names:
            vector: NDArray[np.float32] = self.vectors[self.names.index(name)]
            return vector
        near = difflib.get_close_matches(str(name), self.names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(self.names[:20])}"
        raise InputError(f"direction: got {name!r}; {hint}")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a .npz without pickle; the same directions give the same bytes."""
        return save_arrays(path, {"names": np.array(self.names), "vectors": self.vectors})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Directions:
        """Read what `save` wrote; ModelFileError for anything else, InputError for invalid values."""
        return cls.from_bytes(read_file(path), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Directions:
        """As `load`, from the bytes of the file. name: for messages."""
        arrays = parse_arrays(data, name, {"names": ("U", 1), "vectors": ("f", 2)})
        return cls(tuple(arrays["names"].tolist()), arrays["vectors"])


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Known faces, by name."""

    names: tuple[str, ...]
    """Names, as "avatars/0/17"."""
    codes: NDArray[np.float32]
    """mu of each: (n, latent_dim)"""

    def __post_init__(self) -> None:
        codes = frozen_copy(self.codes)
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        if codes.ndim != 2 or len(codes) != len(self.names) or not len(codes):
            raise InputError(f"neighbors: {len(self.names)} names and codes {codes.shape}, expected n >= 1 of both")
        if not np.isfinite(codes).all():
            raise InputError("neighbors: expected finite codes; encode the faces again")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a .npz without pickle; the same faces give the same bytes."""
        return save_arrays(path, {"names": np.array(self.names), "codes": self.codes})

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Neighbors:
        """From the bytes of what `save` wrote; ModelFileError for anything else. name: for messages."""
        arrays = parse_arrays(data, name, {"names": ("U", 1), "codes": ("f", 2)})
        return cls(tuple(arrays["names"].tolist()), arrays["codes"])
