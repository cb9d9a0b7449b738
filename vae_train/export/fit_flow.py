"""Fitting a `vae_runtime.prior.flow.Flow` to codes: RealNVP over a mixture of isotropic Gaussians (Dinh,
Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vae_runtime.prior import Prior
from vae_runtime.prior.flow import Flow

COUPLINGS = 12
HIDDEN = 32
"""Width of the hidden layer of a coupling's network."""
COMPONENTS = 8
"""Number of Gaussians of the base density, isotropic around 0: codes differ most in their length."""

_STEPS = 1000
_BATCH = 256
_WARMUP = 100
_RATE = 1e-3
_WEIGHT_DECAY = 0.05  # of the matrices
_FLOOR = 1e-4  # of the variances along the principal directions


class Coupling(nn.Module):
    """An affine coupling layer, see `vae_runtime.prior.flow.Flow`; the identity at initialization."""

    order: Tensor
    """(latent_dim,): the elements, those that stay first"""

    def __init__(self, order: Tensor, hidden: int = HIDDEN) -> None:
        super().__init__()
        half = len(order) // 2
        self.register_buffer("order", order)
        self.inner, self.outer = nn.Linear(half, hidden), nn.Linear(hidden, 2 * (len(order) - half))
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    @property
    def kept(self) -> Tensor:
        """The elements that stay."""
        return self.order[: len(self.order) // 2]

    @property
    def changed(self) -> Tensor:
        """The others."""
        return self.order[len(self.order) // 2 :]

    def forward(self, x: Tensor) -> Tensor:
        """(n, latent_dim) -> (n, latent_dim)"""
        moves, scales = self._network(x)
        after = x.clone()
        after[:, self.changed] = x[:, self.changed] * torch.exp(scales) + moves
        return after

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's input (n, latent_dim) for an output, and the sum of its log scales, (n,)."""
        moves, scales = self._network(y)
        before = y.clone()
        before[:, self.changed] = (y[:, self.changed] - moves) * torch.exp(-scales)
        return before, scales.sum(1)

    def _network(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shifts and log scales from the elements that stay, (n, changed) each."""
        moves, scales = self.outer(nn.functional.silu(self.inner(x[:, self.kept]))).chunk(2, 1)
        return moves, torch.tanh(scales)


class RealNVP(nn.Module):
    """A mixture of isotropic Gaussians around 0, transformed by coupling layers."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.couplings: list[Coupling] = [Coupling(torch.randperm(latent_dim)) for _ in range(COUPLINGS)]
        self.layers = nn.ModuleList(self.couplings)
        self.log_deviations = nn.Parameter(torch.linspace(-0.5, 0.5, COMPONENTS))
        self.logits = nn.Parameter(torch.zeros(COMPONENTS))

    def log_prob(self, y: Tensor) -> Tensor:
        """(n, latent_dim) -> (n,), in nats."""
        dim, volume = y.shape[1], torch.zeros(len(y))
        for coupling in reversed(self.couplings):
            y, scales = coupling.inverse(y)
            volume = volume + scales
        squares = y.square().sum(1, keepdim=True) * torch.exp(-2 * self.log_deviations)
        each = -squares / 2 - dim * (self.log_deviations + math.log(2 * math.pi) / 2)
        return torch.logsumexp(torch.log_softmax(self.logits, 0) + each, 1) - volume


def fit_flow(mu: NDArray[np.float32], logvar: NDArray[np.float32], seed: int = 0) -> Prior:
    """A flow prior for the aggregated posterior of q(z|x) = N(mu, exp(logvar)), (n, latent_dim) each, latent_dim >= 2.

    Each step draws new codes of other pictures. Couplings act on whitened principal directions. Few steps and weight
    decay keep it from overfitting.
    """
    dim = mu.shape[1]
    center = mu.mean(0, dtype=np.float64)
    covariance = np.cov(mu.T, dtype=np.float64) + np.diag(np.exp(logvar).mean(0, dtype=np.float64))
    variances, directions = np.linalg.eigh(covariance)
    deviations = np.sqrt(np.maximum(variances, _FLOOR))
    whiten = torch.from_numpy((directions / deviations).astype(np.float32))
    means = torch.from_numpy((mu - center).astype(np.float32)) @ whiten
    sigmas = torch.from_numpy(np.exp(logvar / 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RealNVP(dim)
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        others = [weight for weight in model.parameters() if weight.ndim < 2]
        groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
        for _ in range(_STEPS):
            rows = torch.randint(len(mu), (_BATCH,))
            points = means[rows] + (sigmas[rows] * torch.randn(_BATCH, dim)) @ whiten
            loss = -model.log_prob(points).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return _as_prior(model, directions * deviations, center)


def _rate(step: int) -> float:
    return min(1.0, (step + 1) / _WARMUP) * (1 + math.cos(math.pi * step / _STEPS)) / 2


@torch.no_grad()
def _as_prior(model: RealNVP, basis: NDArray[np.float64], shift: NDArray[np.float64]) -> Prior:
    flow = as_flow(model.couplings, basis.astype(np.float32), shift.astype(np.float32))
    weights = torch.softmax(model.logits, 0).numpy()
    spreads = model.log_deviations.exp()[:, None].repeat(1, flow.latent_dim).numpy()
    return Prior(weights, np.zeros_like(spreads), None, spreads, flow)


@torch.no_grad()
def as_flow(layers: Sequence[Coupling], basis: NDArray[np.float32], shift: NDArray[np.float32]) -> Flow:
    """The couplings and the affine map after them, as `vae_runtime` has it."""

    def stack(name: str) -> NDArray[np.float32]:
        return torch.stack([layer.get_parameter(name) for layer in layers]).cpu().numpy()

    return Flow(
        orders=torch.stack([layer.get_buffer("order") for layer in layers]).cpu().numpy(),
        inner=stack("inner.weight"),
        inner_bias=stack("inner.bias"),
        outer=stack("outer.weight"),
        outer_bias=stack("outer.bias"),
        basis=basis,
        shift=shift,
    )
