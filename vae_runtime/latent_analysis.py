"""Analysis of a set of codes: principal components, attribute directions, nearest neighbors, percentiles."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime.checks import Array, as_codes, as_latent, check_choice, check_count
from vae_runtime.errors import InputError
from vae_runtime.latent import to_unit_length

Metric: TypeAlias = Literal["euclidean", "cosine"]


def pca_directions(codes: ArrayLike, count: int = 8) -> tuple[Array, Array]:
    """The `count` directions along which `codes` (n, d) vary most, and the share of the variance that each holds.

    Returns float32 (count, d), each as long as the standard deviation along it, and float64 (count,). The sign of each
    makes its element of largest magnitude positive.
    """
    points = as_codes(codes, name="codes").astype(np.float64)
    number = check_count(count, "count", 1, min(points.shape[1], max(1, len(points) - 1)))
    centered = points - points.mean(axis=0)
    variances, vectors = np.linalg.eigh(centered.T @ centered / max(1, len(points) - 1))
    order = np.argsort(variances)[::-1][:number]
    axes = vectors.T[order]
    axes *= np.sign(axes[np.arange(number), np.abs(axes).argmax(axis=1)])[:, None]
    spread = np.maximum(variances[order], 0)
    total = max(float(variances.sum()), np.finfo(np.float64).tiny)
    return (axes * np.sqrt(spread)[:, None]).astype(np.float32), spread / total


def attribute_direction(
    codes: ArrayLike, labels: ArrayLike, method: Literal["mean", "ridge"] = "mean", penalty: float = 1.0
) -> NDArray[np.float32]:
    """The direction in which an attribute grows: float32 (d,), as long as the standard deviation of `codes` along it.

    codes: (n, d). labels: (n,), numbers or booleans, not all equal. method: "mean" takes the mean of the codes above
    the mean label minus that of the others (Larsen et al. 2016). "ridge" regresses the label on the code,
    w = (X^T X + penalty I)^-1 X^T y with X and y centered, which separates attributes that occur together.
    """
    points = as_codes(codes, name="codes").astype(np.float64)
    marks = as_latent(labels, "labels", kinds="biuf").astype(np.float64)
    if marks.shape != (len(points),) or np.ptp(marks) == 0:
        raise InputError(f"labels: got the shape {marks.shape}, expected ({len(points)},) with at least two values")
    weight = as_latent(penalty, "penalty")
    if weight.ndim or weight <= 0:
        raise InputError(f"penalty: got {penalty}, expected a number > 0")
    check_choice(method, "method", "mean", "ridge")
    centered, target = points - points.mean(axis=0), marks - marks.mean()
    if method == "mean":
        vector = points[target > 0].mean(axis=0) - points[target <= 0].mean(axis=0)
    else:
        vector = np.linalg.solve(centered.T @ centered + weight * np.eye(points.shape[1]), centered.T @ target)
    unit, length = to_unit_length(vector)
    if length == 0:
        raise InputError("labels: the codes do not differ between them, so there is no direction")
    return np.asarray(unit * (centered @ unit).std(), np.float32)


def nearest(
    query: ArrayLike, codes: ArrayLike, count: int = 5, metric: Metric = "euclidean"
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The `count` rows of `codes` (n, d) nearest to each code of `query` (m, d): indices and distances (m, count).

    Nearest first, ties in the order of `codes`. metric: "euclidean", or "cosine": 1 - cos of the angle.
    """
    points = as_codes(codes, name="codes").astype(np.float64)
    asked = as_codes(query, points.shape[1], "query").astype(np.float64)
    number = check_count(count, "count", 1, len(points))
    check_choice(metric, "metric", "euclidean", "cosine")
    places, distances = np.empty((len(asked), number), np.intp), np.empty((len(asked), number))
    if metric == "cosine":
        points, asked = to_unit_length(points)[0], to_unit_length(asked)[0]
    for row, one in enumerate(asked):
        away = 1 - points @ one if metric == "cosine" else np.linalg.norm(points - one, axis=1)
        places[row] = np.argsort(away, kind="stable")[:number]
        distances[row] = away[places[row]]
    return places, distances


def percentile(scores: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Percentage of the `reference` scores (n,) below each of `scores`; equal ones count half."""
    known, asked = as_latent(reference, "reference").astype(np.float64), as_latent(scores, "scores")
    if known.ndim != 1 or len(known) == 0:
        raise InputError(f"reference: got the shape {known.shape}, expected (n,) with n >= 1")
    ordered = np.sort(known)
    below, upto = (np.searchsorted(ordered, asked, side) for side in ("left", "right"))
    return np.asarray(50 * (below + upto) / len(ordered), np.float64)
