"""Attributes of faces, such as hair or eye color: a linear classifier of codes for each."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime.checks import as_codes, frozen_copy, make_rng
from vae_runtime.errors import InputError, InputTypeError
from vae_runtime.npz import parse_arrays, read_file, save_arrays
from vae_runtime.prior import Codes, Prior

_ARRAYS = {
    "columns": ("U", 1),
    "counts": ("i", 1),
    "values": ("U", 1),
    "weights": ("f", 2),
    "bias": ("f", 1),
    "accuracy": ("f", 1),
}
_AT_ONCE = 64  # faces that are drawn at a time, to bound memory
_CANDIDATES = 128  # draws from the prior for each face
_FEWEST_DRAWS = 1024  # draws that the covariance of codes is estimated from
_SURE = 0.97  # probability of the requested values at which a code is final
_STEPS, _RATE = 24, 0.5


@dataclass(frozen=True, eq=False)
class Attributes:
    """Columns of labels, as "hair", each with its values, as "blue", and a softmax classifier of codes.

    The rows of `weights` and `bias` are the values of all columns, one column after the other.
    """

    values: Mapping[str, tuple[str, ...]]
    """Column -> its values, two or more."""
    weights: NDArray[np.float32]
    """(number of all values, latent_dim)"""
    bias: NDArray[np.float32]
    """(number of all values,)"""
    accuracy: NDArray[np.float32]
    """Share of held-out faces whose most probable value is right, by column: (number of columns,)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {str(name): tuple(map(str, each)) for name, each in self.values.items()})
        for name in ("weights", "bias", "accuracy"):
            object.__setattr__(self, name, frozen_copy(getattr(self, name)))
        total = sum(len(each) for each in self.values.values())
        shapes = self.weights.ndim, self.weights.shape[:1], self.bias.shape, self.accuracy.shape
        if not self.values or shapes != (2, (total,), (total,), (len(self.values),)):
            raise InputError(
                f"attributes: weights {self.weights.shape}, bias {self.bias.shape}, accuracy {self.accuracy.shape} for "
                f"{total} values of {len(self.values)} columns; expected a row for each value"
            )
        if not all(np.isfinite(array).all() for array in (self.weights, self.bias, self.accuracy)):
            raise InputError("attributes: expected finite numbers; fit them again")
        if not all(len(set(each)) == len(each) >= 2 for each in self.values.values()):
            raise InputError("attributes: expected two or more distinct values in each column")
        if not all(name.isprintable() for column, each in self.values.items() for name in (column, *each)):
            raise InputError(f"attributes: some names of {list(self.values)[:8]} or their values are not printable")

    @property
    def latent_dim(self) -> int:
        """Length of a code."""
        return int(self.weights.shape[1])

    def probabilities(self, codes: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Column -> the probability of each of its values for codes (n, latent_dim): float64 (n, number of values)."""
        return {name: np.exp(logs) for name, logs in self._log_probabilities(codes).items()}

    def log_probability(self, codes: ArrayLike, where: Mapping[str, str]) -> NDArray[np.float64]:
        """log p(where | z), (n,), of one value for some of the columns, which count as independent given the code.

        InputError for an unknown column or value names those there are.
        """
        places = [(column, self._place(column, value)) for column, value in self.check(where).items()]
        logs = self._log_probabilities(codes)
        return np.asarray(sum(logs[column][:, place] for column, place in places), np.float64)

    def check(self, where: Mapping[str, str]) -> Mapping[str, str]:
        """`where` itself if all its columns and values exist, else InputTypeError or InputError."""
        if not isinstance(where, Mapping) or not where:
            raise InputTypeError(f"where: got {where!r}, expected column -> value, as {self._example()}")
        for column, value in where.items():
            self._place(column, value)
        return where

    def sample(
        self,
        prior: Prior,
        count: int,
        where: Mapping[str, str],
        rng: np.random.Generator | int | None = None,
        temperature: float = 1.0,
        truncation: float | None = None,
    ) -> Codes:
        """`count` draws that have what `where` asks for: float32 (count, latent_dim).

        Sampling importance resampling (Rubin 1987): of 128 draws from the prior for each face, one is kept with a
        probability proportional to p(where | z). Steps along the gradient of log p(where | z) then make sure of it, as
        classifier guidance does (Dhariwal and Nichol 2021). Multiplied by the covariance of the prior's draws, the
        gradient points from the mean of all codes to that of those with these attributes, so codes stay likely ones.
        """
        self.check(where)
        generator, found = make_rng(rng), [np.empty((0, self.latent_dim), np.float32)]
        for start in range(0, count, _AT_ONCE):
            faces = min(_AT_ONCE, count - start)
            draws = prior.sample(max(faces * _CANDIDATES, _FEWEST_DRAWS), generator, temperature, truncation)
            scores = self.log_probability(draws, where)
            # The largest sums of scores and Gumbel noise: draws by exp(scores), none twice.
            chosen = np.argsort(-scores - generator.gumbel(size=scores.shape))[:faces]
            found.append(self._guide(draws[chosen], where, np.cov(draws[:_FEWEST_DRAWS].T, dtype=np.float64)))
        return np.concatenate(found)

    def _guide(self, codes: Codes, where: Mapping[str, str], covariance: NDArray[np.float64]) -> Codes:
        """Codes moved until they have what `where` asks for, or `_STEPS` are done."""
        moved = codes.astype(np.float64)
        for _ in range(_STEPS):
            unsure = self.log_probability(moved, where) < np.log(_SURE)
            if not unsure.any():
                break
            moved[unsure] += _RATE * self._slope(moved[unsure], where) @ covariance
        return moved.astype(np.float32)

    def _slope(self, codes: NDArray[np.float64], where: Mapping[str, str]) -> NDArray[np.float64]:
        """The gradient of `log_probability` with respect to the codes, (n, latent_dim)."""
        chances = self.probabilities(codes)
        weights = dict(zip(self.values, np.split(self.weights.astype(np.float64), self._edges), strict=True))
        return np.asarray(
            sum(
                weights[column][self._place(column, value)] - chances[column] @ weights[column]
                for column, value in where.items()
            )
        )

    @property
    def _edges(self) -> NDArray[np.intp]:
        """The rows of `weights` at which columns end, but for the last."""
        return np.asarray(np.cumsum([len(each) for each in self.values.values()])[:-1], np.intp)

    def _log_probabilities(self, codes: ArrayLike) -> dict[str, NDArray[np.float64]]:
        scores = as_codes(codes, self.latent_dim) @ self.weights.T.astype(np.float64) + self.bias
        parts = (part - part.max(axis=1, keepdims=True) for part in np.split(scores, self._edges, axis=1))
        logs = [part - np.log(np.exp(part).sum(axis=1, keepdims=True)) for part in parts]
        return dict(zip(self.values, logs, strict=True))

    def _place(self, column: str, value: str) -> int:
        if column not in self.values:
            raise InputError(f"where: no attribute {column!r}; expected one of {', '.join(self.values)}")
        if value not in self.values[column]:
            near = difflib.get_close_matches(str(value), self.values[column], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"where: {column} has no value {value!r}; {hint}expected one of {', '.join(self.values[column])}"
            )
        return self.values[column].index(value)

    def _example(self) -> dict[str, str]:
        column, values = next(iter(self.values.items()))
        return {column: values[0]}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a .npz without pickle; the same attributes give the same bytes."""
        names = {
            "columns": np.array(list(self.values)),
            "counts": np.array([len(each) for each in self.values.values()], np.int32),
            "values": np.array([value for each in self.values.values() for value in each]),
        }
        return save_arrays(path, names | {name: getattr(self, name) for name in ("weights", "bias", "accuracy")})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Attributes:
        """Read what `save` wrote; ModelFileError for anything else, InputError for invalid values."""
        return cls.from_bytes(read_file(path), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Attributes:
        """As `load`, from the bytes of the file. name: for messages."""
        arrays = parse_arrays(data, name, _ARRAYS)
        columns, counts, values = (arrays[key].tolist() for key in ("columns", "counts", "values"))
        if len(columns) != len(counts) or sum(counts) != len(values) or min(counts, default=0) < 1:
            raise InputError("attributes: expected a number of values for each column")
        ends = np.cumsum(counts).tolist()
        parts = {column: values[end - count : end] for column, count, end in zip(columns, counts, ends, strict=True)}
        return cls(parts, arrays["weights"], arrays["bias"], arrays["accuracy"])
