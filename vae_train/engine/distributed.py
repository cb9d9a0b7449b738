"""One process or many: `torchrun -m vae_train` on PyTorch's own engine (DistributedDataParallel, NCCL on GPUs, gloo on
CPUs).

The batch of a step is cut into equal shards; losses, statistics of BatchNorm and gradients are those of the whole
batch, so the number of processes affects only rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from vae_train.errors import TrainingError

TIMEOUT = timedelta(minutes=5)
"""Timeout of a collective operation: longer than the main process needs for held-out figures and a checkpoint."""


@dataclass(frozen=True)
class DistributedContext:
    """The processes that train together; the default is a single one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank of this process on its machine, and the index of its GPU."""

    @classmethod
    def from_environment(cls) -> DistributedContext:
        """From the variables that torchrun sets."""
        rank, world_size, local_rank = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(int(rank or 0), int(world_size or 1), int(local_rank or 0))

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, without gradients."""
        if self.world_size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, without gradients."""
        return self.all_reduce_sum(value) / self.world_size

    def all_reduce_max(self, number: int) -> int:
        """The maximum of a number over the processes; does not wait for a GPU."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def shard(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch."""
        size = len(batch) // self.world_size
        return batch[self.rank * size : (self.rank + 1) * size]


SINGLE_PROCESS = DistributedContext()


@contextmanager
def process_group(context: DistributedContext) -> Iterator[None]:
    """Connect to the other processes; TrainingError when the connection breaks."""
    if context.world_size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # torchrun keeps one store over its restarts, with the addresses of processes that are gone: a prefix a start.
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    prefixed = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=prefixed, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise TrainingError(f"process {rank} of {size}: the connection to the others broke ({error})") from error
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes, with gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with the statistics of the whole batch, like nn.SyncBatchNorm, which exists for GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        size = dist.get_world_size()
        mean: Tensor = _Sum.apply(x.mean((0, 2, 3))) / size
        centered = x - mean[:, None, None]
        variance: Tensor = _Sum.apply(centered.square().mean((0, 2, 3))) / size
        with torch.no_grad():
            count = x.numel() / x.shape[1] * size
            momentum = float(self.momentum or 0.0)
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * count / (count - 1), momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalized: Tensor = centered * scale[:, None, None] + self.bias[:, None, None]
        return normalized.to(input.dtype)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with the statistics of BatchNorm taken over all processes; names and weights stay."""
    if device.type == "cuda":
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synchronized
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            replacement = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum)
            replacement.load_state_dict(child.state_dict())
            setattr(module, name, replacement.to(device))
        else:
            synchronize_batch_norm(child, device)
    return module


def wrap_model(module: nn.Module, context: DistributedContext) -> Any:
    """The module, its gradients averaged over the processes."""
    return DistributedDataParallel(module) if context.world_size > 1 else module
