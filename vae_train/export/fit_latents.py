"""What is learned from the codes of the training pictures, once the networks are: the prior that samples come from, and
named directions.

The codes of real pictures do not fill N(0, I). The density that they do fill, the aggregated posterior, is fitted here,
by Gaussian mixtures and by a flow, and the best goes beside the graphs: ex-post density estimation (Ghosh et al., "From
variational to deterministic autoencoders", 2020, section 4).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from vae_runtime.directions import Directions
from vae_runtime.latent import reparameterize
from vae_runtime.latent_analysis import attribute_direction, pca_directions
from vae_runtime.prior import Prior
from vae_train.data.faces import Faces
from vae_train.data.labels import Labels
from vae_train.export.fit_flow import fit_flow
from vae_train.model.metrics import sliced_wasserstein
from vae_train.model.networks import VAE
from vae_train.model.tensors import to_unit

COMPONENTS = (1, 2, 4, 8, 16)
"""Numbers of Gaussians, each with a covariance of its own, that are tried, until one is worse than those before."""
TIED = (8, 16, 32)
"""Numbers of Gaussians that share the principal directions of the codes, and are tried in the same way."""
PCA = 8
"""Principal directions that are shipped."""

_BATCH = 250
_MOST = 16_000  # codes that a mixture is fitted to
_ITERATIONS = 40
_FLOOR = 1e-4  # added to variances, as fitting asks for
_TIED_FLOOR = 1e-3  # the same, where the variances of all points are 1
_FLOW_CODES = 4000  # pictures from which on a flow is fitted: it has more numbers than a mixture
_COMPARED = 1000  # pictures, most, that samples are compared with
_FEWEST = 50  # faces that must have an attribute, and must not, before it becomes a direction


@dataclass(frozen=True)
class Codes:
    """q(z|x) of pictures."""

    mu: NDArray[np.float32]
    """(n, latent_dim)"""
    logvar: NDArray[np.float32]
    """(n, latent_dim)"""


@torch.no_grad()
def encode(network: VAE, pixels: NDArray[np.uint8]) -> Codes:
    """The codes of pictures (n, 3, S, S)."""
    network.eval()
    device = next(network.parameters()).device
    parts = [
        network.encoder(to_unit(torch.from_numpy(np.array(pixels[start : start + _BATCH])).to(device)))
        for start in range(0, len(pixels), _BATCH)
    ]
    mu, logvar = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
    return Codes(mu, logvar)


def draw(codes: Codes, seed: int = 0) -> NDArray[np.floating]:
    """One z ~ q(z|x) of each picture."""
    return reparameterize(codes.mu, codes.logvar, np.random.default_rng(seed))


@torch.no_grad()
def decode(network: VAE, z: NDArray[np.float32]) -> torch.Tensor:
    """The pictures of codes (n, latent_dim): uint8 (n, 3, S, S)."""
    network.eval()
    device = next(network.parameters()).device
    parts = [network.decoder(part.to(device)).cpu() for part in torch.from_numpy(z).split(_BATCH)]
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def fit_prior(train: Codes, held_out: Codes, seed: int = 0) -> tuple[Prior, dict[str, float]]:
    """The mixture that gives held-out codes the highest density, and each one's mean log density in nats.

    A draw z ~ q(z|x) of each picture is fitted, so the noise of the posteriors is part of the density. The result names
    N(0, I) "unit" and the mixtures by their number of components, "tied" where these share their principal directions:
    a covariance for each component asks for more codes than most sources have, while codes of strong and weak
    pictures differ above all in how far they lie from the mean.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(train.mu))[:_MOST]
    points = reparameterize(train.mu[chosen], train.logvar[chosen], rng)
    test = draw(held_out, seed)
    fits = {"unit": Prior.standard(points.shape[1])}
    scores = {"unit": float(fits["unit"].log_prob(test).mean())}
    least = 2 * points.shape[1]  # codes that determine a covariance
    for kind, counts, fit, each in (("", COMPONENTS, _mixture, least), (" tied", TIED, _tied_mixture, _FEWEST)):
        before = -np.inf
        for count in counts:
            if len(points) < max(least, each * count):
                break
            name = f"{count}{kind}"
            fits[name] = fit(points, count, seed)
            scores[name] = float(fits[name].log_prob(test).mean())
            if scores[name] < before:  # more components would only follow the training codes more closely
                break
            before = scores[name]
    return fits[max(scores, key=lambda name: scores[name])], scores


def _mixture(points: NDArray[np.floating], count: int, seed: int) -> Prior:
    """`count` Gaussians, each with a covariance of its own."""
    weights, means, covariances = _fit(points, count, "full", _FLOOR, seed)
    return Prior(weights, means, np.linalg.cholesky(covariances))


def _tied_mixture(points: NDArray[np.floating], count: int, seed: int) -> Prior:
    """`count` Gaussians that differ in how far they reach along the principal directions of all points.

    Along these, in their standard deviations, the points are fitted by Gaussians with diagonal covariances.
    """
    centre = points.mean(0, dtype=np.float64)
    variances, directions = np.linalg.eigh(np.cov(points.T, dtype=np.float64))
    deviations = np.sqrt(np.maximum(variances, _FLOOR))
    weights, means, squares = _fit((points - centre) @ directions / deviations, count, "diag", _TIED_FLOOR, seed)
    scales = directions * deviations
    return Prior(weights, centre + means @ scales.T, scales[None], np.sqrt(squares))


def _fit(points: NDArray[np.floating], count: int, kind: str, floor: float, seed: int) -> tuple[Any, Any, Any]:
    """Weights, means and covariances of a mixture, the largest weight first. floor: added to variances."""
    settings = {"reg_covar": floor, "max_iter": _ITERATIONS, "tol": 1e-2, "random_state": seed}
    model = GaussianMixture(count, covariance_type=kind, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few steps more or less are no fault
        model.fit(points.astype(np.float64))
    order = np.argsort(model.weights_)[::-1]
    return model.weights_[order] / model.weights_.sum(), model.means_[order], model.covariances_[order]


def fit_directions(train: Codes, pixels: NDArray[np.uint8], labels: Labels) -> Directions:
    """The principal directions of the codes, and those of attributes: of the labels if there are some, and of colours.

    pixels (n, 3, S, S) and the lists of `labels` belong to the rows of `train`. A label's direction goes from the mean
    code of faces without it to that of faces with it: what tells them apart best, a regression, is a direction in which
    codes hardly vary, and pictures hardly change. Colours of a picture occur together, so theirs are ridge regressions.
    """
    axes, _ = pca_directions(train.mu, min(PCA, train.mu.shape[1], len(train.mu) - 1))
    found = {f"pca-{number + 1}": axis for number, axis in enumerate(axes) if axis.any()}
    for name, marks in _label_marks(labels).items():
        found[name] = attribute_direction(train.mu, marks, method="mean")
    for name, marks in _colour_marks(pixels).items():
        if np.ptp(marks) > 0 and name not in found:
            found[name] = attribute_direction(train.mu, marks, method="ridge", penalty=float(len(train.mu)) / 100)
    return Directions(tuple(found), np.stack(list(found.values())))


def _label_marks(labels: Labels) -> dict[str, NDArray[np.floating]]:
    """Attribute -> 1 for the faces that have it: glasses, beard and hat at all; hair and skin by colour."""
    marks: dict[str, NDArray[np.floating]] = {}
    for attribute in ("glasses", "beard", "hat"):
        if attribute in labels:
            marks[attribute] = np.array([value not in (None, "NONE") for value in labels[attribute]], np.float64)
    for attribute, prefix in (("hair_color", "hair"), ("skin", "skin")):
        values = labels.get(attribute, [])
        for value in sorted({value for value in values if value is not None}):
            marks[f"{prefix}-{value.lower().replace('_', '-')}"] = np.array([each == value for each in values], float)
    return {name: each for name, each in marks.items() if _FEWEST <= each.sum() <= len(each) - _FEWEST}


def _colour_marks(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.floating]]:
    """Attribute -> its measure: the brightness of the picture; of the place where hair is, brightness and colours."""
    side = pixels.shape[-1]
    top = np.array(pixels[:, :, side // 16 : side // 4, side // 4 : -side // 4]).mean((2, 3), dtype=np.float64)
    whole = np.concatenate(
        [pixels[start : start + 4096].mean((1, 2, 3), dtype=np.float64) for start in range(0, len(pixels), 4096)]
    )
    red, green, blue = top.T
    return {
        "brightness": whole,
        "hair-bright": top.mean(1),
        "hair-reddish": red - (green + blue) / 2,
        "hair-greenish": green - (red + blue) / 2,
        "hair-bluish": blue - (red + green) / 2,
    }


def learn(network: VAE, faces: Faces, mirrored: bool = False) -> tuple[Prior, Directions, dict[str, float]]:
    """The prior, the directions and the scores of `fit_prior` for a network and the source that it was trained on.

    mirrored: whether it was trained on mirrored pictures, too; a flow, which follows single codes else, is then fitted
    to the codes of both. The few numbers of a mixture need no more codes, and drawn faces have a side.
    """
    held_out = faces.held_out()
    rows = np.flatnonzero(~held_out)
    pixels = faces.pixels[~held_out]
    train, test = encode(network, pixels), encode(network, faces.pixels[held_out])
    labels = {name: [values[row] for row in rows] for name, values in faces.labels.items()}
    prior, scores = fit_prior(train, test)
    if len(pixels) >= _FLOW_CODES and network.latent_dim > 1:  # a coupling splits a code in two
        seen = [train, encode(network, pixels[..., ::-1])] if mirrored else [train]
        flow = fit_flow(np.concatenate([each.mu for each in seen]), np.concatenate([each.logvar for each in seen]))
        scores["flow"] = float(flow.log_prob(draw(test)).mean())
        prior = nearest(network, [prior, flow], pixels)
    return prior, fit_directions(train, pixels, labels), scores


def nearest(network: VAE, priors: Sequence[Prior], pixels: NDArray[np.uint8], seed: int = 0) -> Prior:
    """The prior whose pictures are nearest to those of the training set, by the sliced Wasserstein distance.

    Which density is highest on held-out codes does not say which samples are best: in hundreds of dimensions much of it
    is of directions that hardly show (Theis, van den Oord, Bethge, "A note on the evaluation of generative models",
    2016). pixels: (n, 3, S, S), those that the priors were fitted to, so that the held-out ones can judge the choice.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(pixels))[:_COMPARED]
    real = torch.from_numpy(pixels[np.sort(chosen)])

    def distance(prior: Prior) -> float:
        levels = sliced_wasserstein(decode(network, prior.sample(len(real), seed)), real)
        return sum(levels.values()) / len(levels)

    return min(priors, key=distance)
