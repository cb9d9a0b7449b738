"""Distances between two sets of images, from the features of a network that no training has seen.

The functions on features are plain NumPy; rows are images.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vae_train.adversarial.features import FeatureNetwork, resized
from vae_train.engine.device import choose_precision

Features: TypeAlias = NDArray[np.float64]

NETWORK = "lite2"
"""Not the network of the adversarial stage, which learns to please its own."""
SIDE = 160
"""Images are resized to this many pixels, bicubically."""
NEIGHBORS = 3
"""k of `precision_and_recall`, as in the paper."""

_BATCH = 50


@torch.no_grad()
def extract(images: NDArray[np.uint8], device: torch.device, desc: str = "features") -> Features:
    """The 1280 pooled features of EfficientNet-Lite2 for images, uint8 (n, 3, S, S): (n, 1280).

    RuntimeMissingError if the package with its weights is not installed.
    """
    network = FeatureNetwork(NETWORK, getattr(torch, choose_precision("auto", device))).to(device)
    parts = []
    for start in tqdm(range(0, len(images), _BATCH), desc=desc, unit="batch"):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH])).to(device).float() / 255
        parts.append(network.pooled(resized(batch, SIDE)).double().cpu().numpy())
    return np.concatenate(parts)


def frechet_distance(one: Features, other: Features) -> float:
    """The Frechet distance of Gaussians fitted to two sets of features, (n, d) and (m, d).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with unbiased covariances. Heusel, Ramsauer, Unterthiner, Nessler,
    Hochreiter, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (2017), section 4.
    It grows as the sets shrink: compare only figures of equally large sets.
    """
    first, second = (each - each.mean(0) for each in (one, other))
    first /= np.sqrt(len(first) - 1)
    second /= np.sqrt(len(second) - 1)
    # With C1 = A^T A and C2 = B^T B, the eigenvalues of C1 C2 are the squared singular values of A B^T.
    root = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    shift = np.square(one.mean(0) - other.mean(0)).sum()
    return float(shift + np.square(first).sum() + np.square(second).sum() - 2 * root)


def kernel_distance(one: Features, other: Features) -> float:
    """The squared maximum mean discrepancy of two sets, (n, d) and (m, d), under the kernel (x.y / d + 1)^3: KID.

    The unbiased estimate over the whole sets, which may be slightly negative. Binkowski, Sutherland, Arbel, Gretton,
    "Demystifying MMD GANs" (2018), section 4.
    """
    within = []
    for each in (one, other):
        kernel = _cubic(each, each)
        within.append((kernel.sum() - np.trace(kernel)) / (len(each) * (len(each) - 1)))
    return float(sum(within) - 2 * _cubic(one, other).mean())


def precision_and_recall(real: Features, drawn: Features) -> tuple[float, float]:
    """The share of drawn images within the manifold of the real ones, and of real images within that of the drawn.

    The manifold of a set is the union of balls around its images, each reaching to the `NEIGHBORS`-th nearest other
    image of the set. Kynkaanniemi, Karras, Laine, Lehtinen, Aila, "Improved precision and recall metric for assessing
    generative models" (2019), section 2.
    """
    between = _squared_distances(real, drawn)
    reach_real, reach_drawn = (_neighbor_distances(each) for each in (real, drawn))
    precision = (between <= reach_real[:, None]).any(0).mean()
    recall = (between <= reach_drawn[None]).any(1).mean()
    return float(precision), float(recall)


def _cubic(one: Features, other: Features) -> Features:
    kernel: Features = (one @ other.T / one.shape[1] + 1) ** 3
    return kernel


def _squared_distances(one: Features, other: Features) -> Features:
    squares: Features = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None] - 2 * one @ other.T
    return np.maximum(squares, 0)


def _neighbor_distances(features: Features) -> Features:
    """Squared distance of each row to its `NEIGHBORS`-th nearest other row."""
    distances = _squared_distances(features, features)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, NEIGHBORS - 1, axis=1)[:, NEIGHBORS - 1]
