"""A prior that learns together with the decoder (Grover, Dhar & Ermon, "Flow-GAN: combining maximum likelihood and
adversarial learning in generative models", 2018).

A density that is fitted to codes covers them, and much that lies between them and decodes to no face. The critic tells
which draws those are, and its gradient bends the flow away from them; the likelihood of codes that the prior drew
before keeps these covered, so that faces stay varied.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vae_runtime.prior import Prior
from vae_train.export.fit_flow import COUPLINGS, HIDDEN, Coupling, as_flow


class LearnedPrior(nn.Module):
    """A `vae_runtime.prior.Prior` whose flow is trained, while its mixture stays."""

    log_weights: Tensor
    """(K, 1): of the mixture"""
    means: Tensor
    """(K, 1, latent_dim)"""
    whitening: Tensor
    """(K, latent_dim, latent_dim) or (1, latent_dim, latent_dim): the inverse of the mixture's scales"""
    spreads: Tensor
    """(K, 1, latent_dim)"""
    basis: Tensor
    shift: Tensor

    def __init__(self, prior: Prior, couplings: int = COUPLINGS) -> None:
        """couplings: of the flow, the identity at first, that a prior without one gets; 0 for none. Codes of one number
        have none: a coupling splits a code in two."""
        super().__init__()
        dim, flow = prior.latent_dim, prior.flow
        self.mixture = dataclasses.replace(prior, flow=None)
        count = couplings if dim > 1 else 0
        orders = [torch.randperm(dim) for _ in range(count)] if flow is None else _tensor(flow.orders).long()
        hidden = HIDDEN if flow is None else flow.inner.shape[1]
        self.couplings = [Coupling(order, hidden) for order in orders]
        self.layers = nn.ModuleList(self.couplings)
        if flow is not None:
            for number, layer in enumerate(self.couplings):
                fitted = flow.inner, flow.inner_bias, flow.outer, flow.outer_bias
                for name, array in zip(_PARAMETERS, fitted, strict=True):
                    layer.get_parameter(name).data = _tensor(array[number])
        scales = np.eye(dim)[None] if prior.scales is None else prior.scales.astype(np.float64)
        arrays: dict[str, NDArray[Any]] = {
            "log_weights": np.log(prior.weights)[:, None],
            "means": prior.means[:, None],
            "whitening": np.linalg.inv(scales),
            "spreads": _spreads(prior)[:, None],
            "basis": np.eye(dim) if flow is None else flow.basis,
            "shift": np.zeros(dim) if flow is None else flow.shift,
        }
        for name, array in arrays.items():
            self.register_buffer(name, _tensor(array.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Draws of the mixture to codes, (n, latent_dim) each."""
        for layer in self.couplings:
            x = layer(x)
        return self.shift + x @ self.basis.T

    def log_prob(self, z: Tensor) -> Tensor:
        """(n, latent_dim) -> (n,), in nats."""
        x = torch.linalg.solve(self.basis, (z - self.shift).T).T
        volume = torch.linalg.slogdet(self.basis).logabsdet
        for layer in reversed(self.couplings):
            x, scales = layer.inverse(x)
            volume = volume + scales
        white = (x - self.means) @ self.whitening.transpose(1, 2) / self.spreads  # (K, n, latent_dim)
        volumes = torch.linalg.slogdet(self.whitening).logabsdet[:, None] - self.spreads.log().sum(2)
        constants = self.log_weights + volumes - z.shape[1] / 2 * math.log(2 * math.pi)
        log_prob: Tensor = torch.logsumexp(constants - white.square().sum(2) / 2, 0) - volume
        return log_prob

    def to_prior(self) -> Prior:
        """What `vae_runtime` samples from."""
        if not self.couplings:
            return self.mixture
        flow = as_flow(self.couplings, self.basis.cpu().numpy(), self.shift.cpu().numpy())
        return dataclasses.replace(self.mixture, flow=flow)


def widened(prior: Prior, factor: float) -> Prior:
    """The same prior, its Gaussians wider by a factor: what has learned draws faces that are a little too alike."""
    return dataclasses.replace(prior, spreads=factor * _spreads(prior)) if factor != 1 else prior


class Reach(nn.Module):
    """How far codes go astray: by how much their squared Mahalanobis distance is beyond that of nearly all codes of a
    prior. The likelihood of what was drawn before keeps that covered, but lets single new codes go anywhere."""

    mean: Tensor
    whitening: Tensor
    """(latent_dim, latent_dim)"""
    limit: Tensor
    """(): the squared distance of `_REACHED` of the codes is less."""

    def __init__(self, codes: Tensor) -> None:
        """codes: (n, latent_dim), n > latent_dim, of the prior at the start."""
        super().__init__()
        covariance = torch.cov(codes.double().T).reshape(codes.shape[1], -1)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        self.register_buffer("mean", codes.mean(0))
        self.register_buffer("whitening", whitening.float())
        self.register_buffer("limit", torch.quantile(self.squared_distance(codes), _REACHED))

    def squared_distance(self, z: Tensor) -> Tensor:
        """(n, latent_dim) -> (n,)"""
        return ((z - self.mean) @ self.whitening.T).square().sum(1)

    def forward(self, z: Tensor) -> Tensor:
        """The mean excess of codes (n, latent_dim), in units of the limit: ()"""
        return functional.relu(self.squared_distance(z) / self.limit - 1).mean()


_REACHED = 0.99
_PARAMETERS = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")


def _spreads(prior: Prior) -> NDArray[np.float32]:
    """(K, latent_dim), also where they are all one."""
    return np.ones_like(prior.means) if prior.spreads is None else prior.spreads


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))
