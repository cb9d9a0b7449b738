"""The state of a run (network, moving average, optimizer, position), saved to and restored from checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vae_runtime.ort.devices import usable_cores
from vae_train.config import TrainConfig
from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.distributed import SINGLE_PROCESS, DistributedContext, synchronize_batch_norm
from vae_train.errors import CheckpointError, TrainingError
from vae_train.model.networks import VAE
from vae_train.model.tensors import CHANNELS_LAST

CHECKPOINTS = "checkpoints"
BEST = "best"
"""Folder of the checkpoint with the best held-out loss, in runs that stop early."""

ERROR, KL, IMAGES, SKIPPED, LAST_SKIPPED = range(5)
"""Places of `State.sums`."""


@dataclass
class State:
    """The state of a run."""

    model: VAE
    average: VAE
    """Its moving average, statistics of BatchNorm included: this is what is evaluated, drawn and exported."""
    newest: Tensor
    """Scalar on the device: the share of the newest weights in the average."""
    optimizer: torch.optim.Adam
    sums: Tensor
    """(5,) float64 on the device, the running sums of this epoch and process: squared error and KL over its images,
    their number, the steps that were skipped, and the batch of the last of these, counted from 0."""
    epoch: int = 0
    """Epochs that are complete."""
    batch: int = 0
    """Batches done of the epoch after them."""
    seconds: float = 0.0
    """Time that this epoch's batches took so far."""


def make_state(config: TrainConfig, device: torch.device, context: DistributedContext = SINGLE_PROCESS) -> State:
    """A model with its first weights, decided by the seed, its average and its optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VAE.from_config(config)
    model.to(device=device, memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    if context.world_size > 1:
        synchronize_batch_norm(model, device)
    rate = torch.tensor(config.learning_rate, device=device)  # a tensor: a CUDA graph reads it anew at each step
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=device.type == "cuda")
    newest = torch.ones((), device=device)
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    return State(model, copy.deepcopy(model), newest, optimizer, sums)


@torch.no_grad()
def update_average(state: State) -> None:
    """Mix the newest weights into their moving average, with the share `state.newest` (Polyak & Juditsky 1992, in the
    exponential form). At a constant learning rate it is 1 to 2 nats better than the weights themselves.

    torch's AveragedModel computes the same, but reads a counter on the host at each step, which synchronizes the GPU
    and rules out CUDA graphs.
    """
    pairs = list(zip(state.average.state_dict().values(), state.model.state_dict().values(), strict=True))
    averages, currents = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    difference = torch._foreach_sub(currents, averages)
    torch._foreach_mul_(difference, state.newest)
    torch._foreach_add_(averages, difference)
    for average, current in pairs:
        if not average.is_floating_point():  # BatchNorm's counters of batches
            average.copy_(current)


def save(
    state: State, step: int, run: Path, data: dict[str, Any], folder: str = CHECKPOINTS, keep: int = checkpoint.KEEP
) -> None:
    """Write a checkpoint into a folder of the run.

    data: name, count and sha256 of the pictures that the run is trained on. Raises TrainingError if a weight is not
    finite, CheckpointError if the disk refuses.
    """
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    tensors |= optimizer_tensors(state.optimizer, "optimizer", _parameter_names(state.model))
    tensors["tally"] = state.sums  # the key that this format has always had
    position: dict[str, Any] = {"epoch": state.epoch, "batch": state.batch, "seconds": state.seconds, "data": data}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise TrainingError(f"step {step}: weights that are not finite; the last good checkpoint stays in {run}")
    position["threads"] = torch.get_num_threads()
    checkpoint.save(run / folder, Checkpoint(step, position, tensors), keep)


def restore(state: State, saved: Checkpoint) -> None:
    """Put a checkpoint into `state`; CheckpointError if it belongs to another network.

    On a CPU, torch gets the number of threads that the run had, if that many cores are available: another number would
    round differently.
    """
    load_weights(state.model, saved, "model")
    load_weights(state.average, saved)
    restore_optimizer(state.optimizer, "optimizer", saved.tensors, _parameter_names(state.model))
    state.epoch, state.batch = int(saved.state["epoch"]), int(saved.state["batch"])
    state.seconds = float(saved.state["seconds"])
    state.sums.copy_(saved.tensors["tally"])
    threads = saved.state.get("threads")
    if isinstance(threads, int) and 1 <= threads <= usable_cores():
        torch.set_num_threads(threads)


def part_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are named "name.key", by key."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def load_weights(model: VAE, saved: Checkpoint, kind: Literal["model", "average"] = "average") -> None:
    """Put weights of a checkpoint into `model`; CheckpointError if they are those of another network.

    kind: the averaged weights, or the ones that were being trained.
    """
    weights = part_of(saved.tensors, kind)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != wanted:
        raise CheckpointError("the checkpoint holds the weights of another network than config.json describes")
    model.load_state_dict(weights)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """An optimizer's moments as tensors of a checkpoint, "prefix.name.moment".

    names: of its parameters; by default they are numbered from 0.
    """
    return {
        f"{prefix}.{names[index] if names else index}.{moment}": value
        for index, moments in optimizer.state_dict()["state"].items()
        for moment, value in moments.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor], names: Sequence[str] = ()
) -> None:
    """Put what `optimizer_tensors` returned for the same prefix and names back into an optimizer."""
    indices = {name: index for index, name in enumerate(names)}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            name, _, moment = key.removeprefix(f"{prefix}.").rpartition(".")
            kept = value.contiguous(memory_format=CHANNELS_LAST) if value.ndim == 4 else value
            moments.setdefault(indices[name] if names else int(name), {})[moment] = kept
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameter_names(model: VAE) -> list[str]:
    return [name for name, _ in model.named_parameters()]
