"""Where a run stands: network, moving average, optimiser, position; and how a checkpoint holds it."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vae_train.config import TrainConfig
from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.distributed import ALONE, World, with_global_statistics
from vae_train.engine.loader import CHANNELS_LAST
from vae_train.errors import CheckpointError, DataError, TrainingError
from vae_train.model.networks import VAE

CHECKPOINTS = "checkpoints"

ERROR, KL, IMAGES, SKIPPED, LAST_SKIPPED = range(5)
"""Places of `State.tally`."""


@dataclass
class State:
    """Where a run stands."""

    model: VAE
    average: VAE
    """Its moving average, statistics of BatchNorm included: this is what is evaluated, drawn and exported."""
    newest: Tensor
    """Scalar on the device: the share of the newest weights in the average."""
    optimizer: torch.optim.Adam
    tally: Tensor
    """(5,) float64 on the device, of this epoch so far and this process: the sums of squared error and KL over its
    images, their number, the steps that were skipped, and the batch of the last of these, counted from 0."""
    epoch: int = 0
    """Epochs that are complete."""
    batch: int = 0
    """Batches done of the epoch after them."""
    seconds: float = 0.0
    """Time that this epoch's batches took so far."""


def make_state(config: TrainConfig, device: torch.device, world: World = ALONE) -> State:
    """A model with its first weights, decided by the seed, its average and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VAE.from_config(config)
    model.to(device=device, memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    if world.size > 1:
        with_global_statistics(model, device)
    rate = torch.tensor(config.learning_rate, device=device)  # a tensor: a CUDA graph reads it anew at each step
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=device.type == "cuda")
    newest = torch.ones((), device=device)
    tally = torch.zeros(5, dtype=torch.float64, device=device)
    return State(model, copy.deepcopy(model), newest, optimizer, tally)


@torch.no_grad()
def update_average(state: State) -> None:
    """Mix the newest weights into their moving average, with the share `state.newest` (Polyak & Juditsky 1992, in the
    exponential form). At the write-up's constant learning rate it is 1 to 2 nats better than the weights it is made of.

    torch's AveragedModel does the same sum, but reads a counter of its own on the host at each step: a GPU would have
    to be waited for, and a CUDA graph cannot.
    """
    pairs = list(zip(state.average.state_dict().values(), state.model.state_dict().values(), strict=True))
    averages, currents = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    difference = torch._foreach_sub(currents, averages)
    torch._foreach_mul_(difference, state.newest)
    torch._foreach_add_(averages, difference)
    for average, current in pairs:
        if not average.is_floating_point():  # BatchNorm's counters of batches
            average.copy_(current)


def save(state: State, step: int, run: Path, data: dict[str, Any]) -> None:
    """Write a checkpoint of the run; TrainingError if a weight is no number, CheckpointError if the disk refuses."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    names = [name for name, _ in state.model.named_parameters()]
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{names[index]}.{key}": value for key, value in moments.items()}
    tensors["tally"] = state.tally
    position = {"epoch": state.epoch, "batch": state.batch, "seconds": state.seconds, "data": data}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise TrainingError(f"step {step}: weights that are no numbers; the last good checkpoint stays in {run}")
    checkpoint.save(run / CHECKPOINTS, Checkpoint(step, position, tensors))


def restore(state: State, run: Path, data: dict[str, Any]) -> bool:
    """Put the newest good checkpoint into `state`; False if there is none yet.

    Raises DataError if it was trained on other pictures, CheckpointError if on another network.
    """
    saved, damaged = checkpoint.load_latest(run / CHECKPOINTS)
    for sentence in damaged:
        print(f"warning: {sentence}; going back to the one before", file=sys.stderr)
    if saved is None:
        return False
    if saved.state["data"] != data:
        raise DataError(f"--resume: the pictures are not the ones that {run} was trained on")
    load_weights(state.model, saved, "model")
    load_weights(state.average, saved)
    moments: dict[int, dict[str, Tensor]] = {}
    for index, (name, _) in enumerate(state.model.named_parameters()):
        prefix = f"optimizer.{name}."
        moments[index] = {
            key.removeprefix(prefix): value.contiguous(memory_format=CHANNELS_LAST) if value.ndim == 4 else value
            for key, value in saved.tensors.items()
            if key.startswith(prefix)
        }
    state.optimizer.load_state_dict({"state": moments, "param_groups": state.optimizer.state_dict()["param_groups"]})
    state.epoch, state.batch = int(saved.state["epoch"]), int(saved.state["batch"])
    state.seconds = float(saved.state["seconds"])
    state.tally.copy_(saved.tensors["tally"])
    return True


def load_weights(model: VAE, saved: Checkpoint, kind: Literal["model", "average"] = "average") -> None:
    """Put weights of a checkpoint into `model`; CheckpointError if they are those of another network.

    kind: the averaged weights, or the ones that were being trained.
    """
    weights = {name[len(kind) + 1 :]: value for name, value in saved.tensors.items() if name.startswith(f"{kind}.")}
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != wanted:
        raise CheckpointError("the checkpoint holds the weights of another network than config.json describes")
    model.load_state_dict(weights)
