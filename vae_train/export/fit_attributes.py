"""Linear classifiers of codes for the labels of the training pictures: see `vae_runtime.Attributes`.

Linear discriminant analysis with a shrunk covariance (Friedman, "Regularized discriminant analysis", 1989): as good as
a regression where pictures are many, better where they are few, and solved in closed form.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae_runtime import Attributes
from vae_train.data.labels import Labels

FEWEST = 20
"""Minimum number of training pictures of a value; rarer values are ignored."""
SHRINKAGES = (0.03, 0.1, 0.3, 0.6)
"""Candidate shrinkages of the covariance toward a multiple of I, scored on a fifth of the training pictures."""
SCALES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Candidate scales of the scores, which calibrate them: codes are not exactly Gaussian."""

_FOLDS = 5

Floats: TypeAlias = NDArray[np.float64]
Marks: TypeAlias = NDArray[np.intp]


def fit_attributes(
    train: NDArray[np.float32], train_labels: Labels, held_out: NDArray[np.float32], held_out_labels: Labels
) -> Attributes | None:
    """A softmax classifier of mu for each column of labels with two common values; None without such a column.

    train: mu of one or more views of each training picture, as of the mirror image, (views, n, latent_dim). held_out:
    mu (n, latent_dim). The labels have one value a picture, or None. The accuracy is that on the held-out pictures,
    NaN-free: 0 where none of them has a value.
    """
    values, weights, biases, accuracies = {}, [], [], []
    for column, labels in train_labels.items():
        counts = Counter(value for value in labels if value is not None)
        kept = sorted(value for value, count in counts.items() if count >= FEWEST)
        if len(kept) < 2:
            continue
        rows, marks = _known(labels, kept)
        weight, bias = _fit(train[:, rows].astype(np.float64), marks, len(kept))
        rows, marks = _known(held_out_labels.get(column, []), kept)
        scores = held_out[rows] @ weight.T + bias
        weights.append(weight)
        biases.append(bias)
        accuracies.append(float((scores.argmax(axis=1) == marks).mean()) if len(rows) else 0.0)
        values[column] = tuple(kept)
    if not values:
        return None
    return Attributes(values, np.concatenate(weights), np.concatenate(biases), np.array(accuracies))


def _known(labels: list[str | None], kept: list[str]) -> tuple[Marks, Marks]:
    """The pictures whose label is one of `kept`, and its place there."""
    places = {value: place for place, value in enumerate(kept)}
    found = [(row, places[value]) for row, value in enumerate(labels) if value in places]
    rows, marks = zip(*found, strict=True) if found else ((), ())
    return np.array(rows, np.intp), np.array(marks, np.intp)


def _fit(codes: Floats, marks: Marks, count: int) -> tuple[Floats, Floats]:
    """Weights and bias with the shrinkage and scale under which every fifth picture is most likely by the others."""
    test = np.arange(len(marks)) % _FOLDS == 0
    shrinkage, scale = SHRINKAGES[-1], SCALES[0]
    if len(set(marks[~test])) == count:
        moments = _moments(codes[:, ~test], marks[~test], count)
        likelihoods: dict[tuple[float, float], float] = {}
        for each in SHRINKAGES:
            weight, bias = _discriminant(*moments, each)
            scores = codes[0, test] @ weight.T + bias
            likelihoods |= {(each, factor): _log_likelihood(factor * scores, marks[test]) for factor in SCALES}
        shrinkage, scale = max(likelihoods, key=lambda choice: likelihoods[choice])
    weight, bias = _discriminant(*_moments(codes, marks, count), shrinkage)
    return scale * weight, scale * bias


def _moments(codes: Floats, marks: Marks, count: int) -> tuple[Floats, Floats, Floats]:
    """The share of each value (count,), the means (count, latent_dim) and the covariance around them."""
    shares = np.bincount(marks, minlength=count) / len(marks)
    means = np.stack([codes[:, marks == value].mean(axis=(0, 1)) for value in range(count)])
    rest = (codes - means[marks]).reshape(-1, codes.shape[2])
    return shares, means, rest.T @ rest / len(rest)


def _discriminant(shares: Floats, means: Floats, covariance: Floats, shrinkage: float) -> tuple[Floats, Floats]:
    """log p(value | z) = weights @ z + bias, up to a constant, of Gaussians that share a covariance."""
    dim = len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / dim * np.eye(dim)
    weights = np.linalg.solve(shrunk, means.T).T
    return weights, np.log(shares) - (weights * means).sum(axis=1) / 2


def _log_likelihood(scores: Floats, marks: Marks) -> float:
    """The mean log probability of the right value."""
    scores = scores - scores.max(axis=1, keepdims=True)
    right = scores[np.arange(len(marks)), marks]
    return float((right - np.log(np.exp(scores).sum(axis=1))).mean())
