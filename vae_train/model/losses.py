"""The negative ELBO and its parts, in nats: sums over pixels and latents, one value an image. The mean over the batch
is taken by the caller, and one `beta` stands between the parts.

The usual slips, and what is right: the KL divergence has the factor 1/2 and -logvar, so that it is never negative;
and it is summed, as the reconstruction is, since a mean over pixels beside a sum over latents weighs it 3072 times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vae_runtime.latent import LOGVAR_RANGE
from vae_train.model.metrics import laplacian_pyramid

ROUNDING_VARIANCE = (1 / 255) ** 2 / 12
"""Of 8-bit pixels around the colors that they stand for: no likelihood can be sharper."""


def squared_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """(n, 3, S, S) twice, in [0, 1] -> (n,): the sum of squared errors.

    It is -log N(image | reconstruction, I / 2) without its constant: the classic write-up's likelihood.
    """
    return (reconstruction - image).square().flatten(1).sum(1)


def optimal_variance(squared_error: Tensor, dimensions: int) -> Tensor:
    """The variance of a pixel around its reconstruction that fits best: mean `squared_error` / D, both scalars.

    No gradient flows through it. Rybkin, Daniilidis, Levine, "Simple and effective VAE training
    with calibrated decoders" (2021), section 4.1.
    """
    return (squared_error.detach() / dimensions).clamp_min(ROUNDING_VARIANCE)


def gaussian_nll(squared_error: Tensor, variance: Tensor, dimensions: int) -> Tensor:
    """(n,), a scalar -> (n,): -log N(image | reconstruction, variance I), D = `dimensions` numbers an image.

    At the optimal variance its mean is D/2 log(2 pi e variance), and its gradient that of D/2 log(squared_error): the
    sigma-VAE (Rybkin, Daniilidis, Levine 2021, equation 4), in which no beta has to be tuned.
    """
    return squared_error / (2 * variance) + dimensions / 2 * torch.log(2 * math.pi * variance)


def reconstruction_nats(likelihood: str, squared_error: float, dimensions: int) -> float:
    """The reconstruction part in nats per image, from the mean sum of squared errors; "mse" or "gaussian"."""
    if likelihood == "mse":
        return squared_error
    variance = max(squared_error / dimensions, ROUNDING_VARIANCE)
    return squared_error / (2 * variance) + dimensions / 2 * math.log(2 * math.pi * variance)


def elbo_terms(error: float, kl: float, dimensions: int, likelihood: str, beta: float) -> dict[str, float]:
    """The negative ELBO and its parts in nats per image, from the means of the squared error and the KL divergence."""
    reconstruction = reconstruction_nats(likelihood, error, dimensions)
    return {
        "negative_elbo": reconstruction + beta * kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "squared_error": error,
        "bits_per_dim": bits_per_dim(error, kl, dimensions),
    }


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """(n, latent_dim) twice -> (n,): KL(N(mu, diag(exp(logvar))) || N(0, I)) (Kingma & Welling 2014, appendix B)."""
    return kl_per_latent(mu, logvar).sum(1)


def kl_per_latent(mu: Tensor, logvar: Tensor) -> Tensor:
    """The terms of `kl_divergence`, one a latent: (n, latent_dim)."""
    logvar = logvar.clamp(*LOGVAR_RANGE)
    return 0.5 * (logvar.exp() + mu.square() - 1 - logvar)


def with_free_bits(kl: Tensor, mean: Tensor, free: float) -> Tensor:
    """(n, latent_dim), (latent_dim,) -> (n,): the KL term with `free` nats for nothing in each latent.

    kl: of `kl_per_latent`. mean: of its columns over the whole batch. The mean of the result is
    sum_j max(free, mean_j): Kingma et al., "Improved variational inference with inverse autoregressive flow" (2016),
    equation 15.
    """
    paid = mean.detach() > free
    return (kl * paid).sum(1) + free * (~paid).sum()


def negative_elbo(reconstruction: Tensor, kl: Tensor, beta: Tensor | float = 1.0) -> Tensor:
    """(n,) twice -> (n,): reconstruction + beta * KL (Higgins et al., "beta-VAE", 2017; beta = 1 is the bound)."""
    return reconstruction + beta * kl


def bits_per_dim(squared_error: float, kl: float, dimensions: int) -> float:
    """The bound in bits for each 8-bit color value, under N(x_hat, sigma^2) with the sigma that fits best.

    squared_error, kl: means per image, of a sampled z. sigma^2 = squared_error / D, so the bound is
    1/2 log2(2 pi e sigma^2) + KL / (D ln 2) + 8 (Rybkin, Daniilidis, Levine, "Simple and effective VAE training with
    calibrated decoders", 2021, equation 5; 8 bits for pixels scaled to [0, 1]).
    """
    variance = max(squared_error / dimensions, ROUNDING_VARIANCE)
    return 0.5 * math.log2(2 * math.pi * math.e * variance) + kl / (dimensions * math.log(2)) + 8


PATCH_KERNELS = 8
"""Directions in which the patches of one step are compared."""
_PLACES = 16
"""Patches along each side of a level, about: with a side of 7 pixels they overlap."""


def patch_kernels(eps: Tensor) -> Tensor:
    """Normal numbers (K, 3, 7, 7) -> K directions of length 1."""
    length: Tensor = eps.flatten(1).norm(dim=1)
    return eps / length[:, None, None, None]


def patch_distance(reconstruction: Tensor, image: Tensor, kernels: Tensor) -> Tensor:
    """(n, 3, S, S) twice, in [0, 1], and (K, 3, 7, 7) of `patch_kernels` -> how unlike their textures are, a scalar.

    The sliced Wasserstein distance of the 7 x 7 patches of one set of pictures to those of the other, the mean over the
    levels of a Laplacian pyramid, in standard deviations of the level's colors: what Karras et al. 2018, section 5,
    measure, as a loss (Heitz et al., "A sliced Wasserstein loss for neural texture synthesis", 2021; that a convolution
    with random kernels projects all patches at once is of Elnekave & Weiss, "Generating natural images with direct
    patch distributions matching", 2022). Patches are compared with those at the same place of other pictures: over all
    places alike, a decoder learns to put roughness where it is cheapest, the same dots into each picture.

    A squared error makes what the code leaves open soft; this asks for as much roughness as real pictures have.
    """
    distances = []
    for made, real in zip(laplacian_pyramid(reconstruction), laplacian_pyramid(image), strict=True):
        deviation = real.std((0, 2, 3), keepdim=True).clamp_min(1e-4)
        step = max(1, real.shape[-1] // _PLACES)
        first, second = (
            functional.conv2d(level / deviation, kernels, stride=step).flatten(1).T.contiguous().sort(1).values
            for level in (made, real)
        )
        distances.append((first - second).abs().mean())
    return torch.stack(distances).mean()
