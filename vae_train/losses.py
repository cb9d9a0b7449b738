"""The negative ELBO and its parts, in nats: sums over pixels and latents, one value an image. The mean over the batch
is taken by the caller, and one `beta` stands between the parts.

The usual slips, and what is right: the KL divergence has the factor 1/2 and -logvar, so that it is never negative;
and it is summed, as the reconstruction is, since a mean over pixels beside a sum over latents weighs it 3072 times.
"""

from __future__ import annotations

import math

from torch import Tensor

from vae_runtime.latent import LOGVAR_RANGE


def squared_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """(n, 3, S, S) twice, in [0, 1] -> (n,): the sum of squared errors.

    It is -log N(image | reconstruction, I / 2) without its constant: the classic write-up's likelihood.
    """
    return (reconstruction - image).square().flatten(1).sum(1)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """(n, latent_dim) twice -> (n,): KL(N(mu, diag(exp(logvar))) || N(0, I)) (Kingma & Welling 2014, appendix B)."""
    return kl_per_latent(mu, logvar).sum(1)


def kl_per_latent(mu: Tensor, logvar: Tensor) -> Tensor:
    """The terms of `kl_divergence`, one a latent: (n, latent_dim)."""
    logvar = logvar.clamp(*LOGVAR_RANGE)
    return 0.5 * (logvar.exp() + mu.square() - 1 - logvar)


def negative_elbo(reconstruction: Tensor, kl: Tensor, beta: float = 1.0) -> Tensor:
    """(n,) twice -> (n,): reconstruction + beta * KL (Higgins et al., "beta-VAE", 2017; beta = 1 is the bound)."""
    return reconstruction + beta * kl


def kl_weight(step: int, warmup: int) -> float:
    """Share of beta at a step, counted from 0: it grows evenly to 1 over the first `warmup` steps.

    Bowman et al., "Generating sentences from a continuous space" (2016), section 3.1. Without it the first steps
    silence latents that the decoder has not learned to use yet.
    """
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def bits_per_dim(squared_error: float, kl: float, dimensions: int) -> float:
    """The bound in bits for each 8-bit colour value, under N(x_hat, sigma^2) with the sigma that fits best.

    squared_error, kl: means per image, of a sampled z. sigma^2 = squared_error / D, so the bound is
    1/2 log2(2 pi e sigma^2) + KL / (D ln 2) + 8 (Rybkin, Daniilidis, Levine, "Simple and effective VAE training with
    calibrated decoders", 2021, equation 5; 8 bits for pixels scaled to [0, 1]).
    """
    variance = squared_error / dimensions
    return 0.5 * math.log2(2 * math.pi * math.e * variance) + kl / (dimensions * math.log(2)) + 8
