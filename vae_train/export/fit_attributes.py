"""Linear classifiers of codes for the labels of the training pictures: see `vae_runtime.Attributes`."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from vae_runtime import Attributes
from vae_train.data.labels import Labels

FEWEST = 20
"""Training pictures that a value must have; rarer ones are left out."""
PENALTIES = (0.003, 0.03, 0.3)
"""Inverse strengths of the L2 penalty that are tried on a fifth of the training pictures."""

_ITERATIONS = 300


def fit_attributes(
    train: NDArray[np.float32], train_labels: Labels, held_out: NDArray[np.float32], held_out_labels: Labels
) -> Attributes | None:
    """A softmax classifier of mu for each column of labels with two common values; None without such a column.

    train, held_out: mu (n, latent_dim) of the pictures of both parts; the labels have one value a picture, or None.
    The accuracy is that on the held-out pictures, NaN-free: 0 where none of them has a value.
    """
    values, weights, biases, accuracies = {}, [], [], []
    for column, labels in train_labels.items():
        counts = Counter(value for value in labels if value is not None)
        kept = sorted(value for value, count in counts.items() if count >= FEWEST)
        if len(kept) < 2:
            continue
        rows, marks = _known(labels, kept)
        model = _fit(train[rows], marks)
        rows, marks = _known(held_out_labels.get(column, []), kept)
        binary = len(kept) == 2  # scikit-learn then gives the weights of the second value alone
        weights.append(np.concatenate([-model.coef_ / 2, model.coef_ / 2]) if binary else model.coef_)
        biases.append(np.concatenate([-model.intercept_ / 2, model.intercept_ / 2]) if binary else model.intercept_)
        accuracies.append(model.score(held_out[rows], marks) if len(rows) else 0.0)
        values[column] = tuple(kept)
    if not values:
        return None
    return Attributes(values, np.concatenate(weights), np.concatenate(biases), np.array(accuracies))


def _known(labels: list[str | None], kept: list[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The pictures whose label is one of `kept`, and its place there."""
    places = {value: place for place, value in enumerate(kept)}
    found = [(row, places[value]) for row, value in enumerate(labels) if value in places]
    rows, marks = zip(*found, strict=True) if found else ((), ())
    return np.array(rows, np.intp), np.array(marks, np.intp)


def _fit(codes: NDArray[np.float32], marks: NDArray[np.intp]) -> LogisticRegression:
    """With the penalty that classifies every fifth picture best by the others."""
    test = np.arange(len(marks)) % 5 == 0
    best, most = PENALTIES[0], -1.0
    if len(set(marks[~test])) == len(set(marks)):
        for penalty in PENALTIES:
            model = LogisticRegression(C=penalty, max_iter=_ITERATIONS, tol=1e-3).fit(codes[~test], marks[~test])
            score = model.score(codes[test], marks[test])
            if score > most:
                best, most = penalty, score
    return LogisticRegression(C=best, max_iter=_ITERATIONS, tol=1e-3).fit(codes, marks)
