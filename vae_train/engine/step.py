"""One step of the optimizer: the batch, the objective, and the step itself, compiled and recorded on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vae_train.config import TrainConfig
from vae_train.engine.cuda_graph import capture, compile_network
from vae_train.engine.distributed import SINGLE_PROCESS, DistributedContext, wrap_model
from vae_train.engine.loader import Loader, augment
from vae_train.engine.rng import KERNELS, NOISE, make_generator
from vae_train.engine.schedule import average_weight, kl_weight, learning_rate, sharpness_weight
from vae_train.engine.state import IMAGES, LAST_SKIPPED, SKIPPED, State, update_average
from vae_train.model.losses import (
    PATCH_KERNELS,
    gaussian_nll,
    kl_per_latent,
    negative_elbo,
    optimal_variance,
    patch_distance,
    patch_kernels,
    squared_error,
    with_free_bits,
)
from vae_train.model.metrics import PATCH
from vae_train.model.networks import VAE
from vae_train.model.tensors import to_unit

LEARNING_RATE, KL_WEIGHT, AVERAGE_WEIGHT, SHARPNESS_WEIGHT = range(4)
"""Columns of `schedule_values`."""


class Batch(NamedTuple):
    """Everything that one step takes, on the device; of several processes, each has its shard."""

    pixels: Tensor
    """(n, 3, S, S) uint8"""
    views: Tensor
    """(n, 3) int64, see `augment`"""
    eps: Tensor
    """(n, latent_dim), the noise of the reparameterization"""
    kernels: Tensor
    """(K, 3, 7, 7), see `draw_kernels`"""
    schedule: Tensor
    """(4,), a row of `schedule_values`"""


Step: TypeAlias = Callable[[Batch], None]


def make_batch(
    pixels: Tensor, views: Tensor, number: int, schedule: Tensor, config: TrainConfig, loader: Loader, sharpen: bool
) -> Batch:
    """The batch of step `number`, with its noise. pixels, views: from `Loader.epoch`. schedule: the step's row."""
    noise = make_generator(config.seed, NOISE, number, loader.device)
    eps = torch.randn(config.batch_size, config.latent_dim, generator=noise, device=loader.device)
    kernels = draw_kernels(config, number, loader.device, sharpen)
    return Batch(pixels, views, loader.context.shard(eps), kernels, schedule)


def train_step(
    state: State, network: VAE | Any, config: TrainConfig, context: DistributedContext, batch: Batch
) -> None:
    """One step of the optimizer; nothing in it waits for the device.

    network: `state.model`, or what it was wrapped in. A step whose loss or gradient is not finite changes nothing but
    the running sums.
    """
    pixels, views, eps, kernels, schedule = batch
    rate, kl_share, newest, sharp_share = schedule
    image = to_unit(augment(pixels, views) if config.flip or config.shift else pixels)
    buffers = [buffer.clone() for buffer in state.model.buffers()]
    with torch.autocast(image.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        reconstruction, mu, logvar = network(image, eps)
    error, kl = squared_error(reconstruction, image), kl_per_latent(mu, logvar)
    loss = objective(error, kl, config.beta * kl_share, config, image[0].numel(), context)
    if len(kernels):
        weight = config.sharpness * sharp_share * image[0].numel()
        loss = loss + weight * patch_distance(reconstruction, image, kernels)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()

    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    norm = get_total_norm(gradients)
    if config.clip:  # Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013)
        clip_grads_with_norm_(state.model.parameters(), config.clip, norm)
    finite = norm.isfinite() & context.all_reduce_mean(loss.detach()).isfinite()
    for buffer, before in zip(state.model.buffers(), buffers, strict=True):
        buffer.copy_(torch.where(finite, buffer, before))
    state.optimizer.param_groups[0]["lr"].copy_(rate)
    # The fused optimizer skips its step if this is 1, as it does under a GradScaler.
    state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    state.optimizer.step()
    state.newest.copy_(newest * finite)
    update_average(state)

    sums, done = state.sums, len(image)
    sums[LAST_SKIPPED] = torch.where(finite, sums[LAST_SKIPPED], sums[IMAGES] / done + sums[SKIPPED])
    sums[SKIPPED] += ~finite
    added = torch.stack([error.detach().sum(), kl.detach().sum(), torch.full_like(norm, done)])
    sums[: IMAGES + 1] += torch.where(finite, added, 0)


def objective(
    error: Tensor,
    kl: Tensor,
    beta: Tensor,
    config: TrainConfig,
    dimensions: int,
    context: DistributedContext = SINGLE_PROCESS,
) -> Tensor:
    """What a step minimizes: the negative ELBO of `config`, the mean over the batch.

    error (n,), kl (n, latent_dim): see `losses`. The fitted variance and the free bits are those of the whole batch.
    """
    reconstruction, penalty = error, kl.sum(1)
    if config.likelihood == "gaussian":
        variance = optimal_variance(context.all_reduce_mean(error.detach().mean()), dimensions)
        reconstruction = gaussian_nll(error, variance, dimensions)
    if config.free_bits:
        penalty = with_free_bits(kl, context.all_reduce_mean(kl.detach().mean(0)), config.free_bits)
    return negative_elbo(reconstruction, penalty, beta).mean()


def draw_kernels(config: TrainConfig, step: int, device: torch.device, sharpen: bool = True) -> Tensor:
    """(K, 3, 7, 7): the directions in which the patches of a step are compared; K = 0 where they are not compared."""
    if not (config.sharpness and sharpen):
        return torch.empty(0, 3, PATCH, PATCH, device=device)
    generator = make_generator(config.seed, KERNELS, step, device)
    return patch_kernels(torch.randn(PATCH_KERNELS, 3, PATCH, PATCH, generator=generator, device=device))


def schedule_values(config: TrainConfig, epoch: int, batches: int) -> Tensor:
    """(batches, 4): the learning rate, the weight of the KL divergence, the share of the newest weights in the average,
    and the weight of the patch distance at each step of an epoch."""
    steps = range(epoch * batches, (epoch + 1) * batches)
    return torch.tensor(
        [
            (
                learning_rate(step, config.epochs * batches, config.learning_rate, config.warmup, config.schedule),
                kl_weight(step, config.kl_warmup),
                average_weight(step, config.ema),
                sharpness_weight(step, config.epochs * batches),
            )
            for step in steps
        ]
    )


def make_step(state: State, config: TrainConfig, loader: Loader) -> Step:
    """`train_step` for this run and device: on a single GPU compiled, and recorded as a CUDA graph."""
    device = loader.device
    network = compile_network(wrap_model(state.model, loader.context), device)
    step = partial(train_step, state, network, config, loader.context)
    if device.type != "cuda" or loader.context.world_size > 1:
        return step
    sums = state.sums.clone()
    state.model.train()
    size = config.batch_size
    # With noise that is not finite: the steps of the recording skip themselves, so the state does not move.
    example = Batch(
        torch.zeros(size, *loader.source.shape[1:], dtype=torch.uint8, device=device),
        torch.zeros(size, 3, dtype=torch.int64, device=device),
        torch.full((size, config.latent_dim), float("nan"), device=device),
        draw_kernels(config, 0, device),
        torch.zeros(4, device=device),
    )
    recorded = capture(step, example)
    state.sums.copy_(sums)
    return recorded
