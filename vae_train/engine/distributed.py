"""One process or many: `torchrun -m vae_train` on PyTorch's own engine (DistributedDataParallel, NCCL on GPUs, gloo on
CPUs).

The batch of a step is that of one process, cut into equal shares; losses, statistics of BatchNorm and gradients are
those of the whole batch, so that the number of processes changes nothing but the rounding.
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
"""How long a process waits for the others: longer than the leader needs for held-out figures and a checkpoint."""


@dataclass(frozen=True)
class World:
    """The processes that train together; the default is one alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of this process on its machine, which is that of its GPU."""

    @classmethod
    def from_environment(cls) -> World:
        """As torchrun says it."""
        rank, size, local_rank = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(int(rank or 0), int(size or 1), int(local_rank or 0))

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, without gradients."""
        return self.sum(value) / self.size

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, without gradients."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of the rows of a batch."""
        part = len(batch) // self.size
        return batch[self.rank * part : (self.rank + 1) * part]

    def agree(self, number: int) -> int:
        """The largest of the numbers that the processes give; it does not wait for a GPU."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)


ALONE = World()


@contextmanager
def joined(world: World) -> Iterator[None]:
    """Be connected to the other processes; TrainingError when one of them has gone."""
    if world.size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # torchrun keeps one store over its restarts, with the addresses of processes that are gone: a shelf for each start.
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    shelf = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=shelf, rank=rank, world_size=size, timeout=TIMEOUT)
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
        centred = x - mean[:, None, None]
        variance: Tensor = _Sum.apply(centred.square().mean((0, 2, 3))) / size
        with torch.no_grad():
            count = x.numel() / x.shape[1] * size
            momentum = float(self.momentum or 0.0)
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * count / (count - 1), momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype)


def with_global_statistics(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with BatchNorm over all processes; names and weights stay."""
    if device.type == "cuda":
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synchronized
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            normalised = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum)
            normalised.load_state_dict(child.state_dict())
            setattr(module, name, normalised.to(device))
        else:
            with_global_statistics(child, device)
    return module


def wrapped(module: nn.Module, world: World) -> Any:
    """The module, its gradients averaged over the processes."""
    return DistributedDataParallel(module) if world.size > 1 else module
