"""The mean of second stages that began with one model (Wortsman et al., "Model soups", 2022).

They stay so near each other that the mean of their weights draws better than each of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vae_runtime.config import PRIOR_FILE
from vae_train.adversarial.config import REFINE_FILE, RefineConfig
from vae_train.adversarial.refine import FIRST_PRIOR, first_prior
from vae_train.adversarial.state import learned_prior
from vae_train.config import CONFIG_FILE, TrainConfig
from vae_train.data.faces import load_faces
from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.distributed import SINGLE_PROCESS
from vae_train.engine.held_out import evaluate_held_out
from vae_train.engine.logger import Logger, read_metrics
from vae_train.engine.state import CHECKPOINTS, part_of
from vae_train.engine.train import describe_data, find_checkpoint
from vae_train.errors import CheckpointError
from vae_train.model.networks import VAE

_AVERAGED = {"average.decoder.": "model.decoder.", "average_prior.": "prior."}
"""What is averaged, and where training goes on from it."""


def average_runs(runs: Sequence[Path], out: Path) -> None:
    """Write into `out` a run that stands where the first of `runs` does, with the mean of the averaged weights of all:
    those of the decoder and of the prior's flow.

    Encoder, critic and optimizers are those of the first, and so are the pictures, on whose held-out part the mean is
    measured. `export` takes the run, `refine --resume` goes on from it. Raises CheckpointError for a run without a
    checkpoint, or with other networks or another mixture than the first, DataError where its pictures are gone.
    """
    saved = [_newest(run) for run in runs]
    first = saved[0]
    tensors = dict(first.tensors)
    for name, value in first.tensors.items():
        for averaged, trained in _AVERAGED.items():
            if name.startswith(averaged):
                found = [_like(value, name, other, run) for other, run in zip(saved, runs, strict=True)]
                tensors[name] = torch.stack(found).mean(0, dtype=torch.float64).to(value.dtype)
                tensors[trained + name.removeprefix(averaged)] = tensors[name].clone()
    config = RefineConfig.load(runs[0])
    prior = learned_prior(first_prior(runs[0]), config)
    prior.load_state_dict(part_of(tensors, "average_prior"))
    figures = _measure(tensors, first, runs[0])
    out.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG_FILE, REFINE_FILE, FIRST_PRIOR):
        shutil.copy(runs[0] / file, out / file)
    before = [record for record in read_metrics(runs[0]) if record["step"] < first.step]
    place = {"epoch": first.state["epoch"], "step": first.step, "images": first.step * config.batch_size}
    Logger(out, before, False).add(place | figures)
    prior.to_prior().save(out / PRIOR_FILE)
    checkpoint.save(out / CHECKPOINTS, Checkpoint(first.step, first.state, tensors))


def _measure(tensors: dict[str, Tensor], saved: Checkpoint, run: Path) -> dict[str, float]:
    """The held-out figures of the mean, named as in metrics.jsonl."""
    config = TrainConfig.load(run)
    faces = load_faces(config.data, config.image_size, config.avatars, config.seed)
    held_out = faces.held_out()
    describe_data(faces, held_out, saved, run)
    model = VAE.from_config(config)
    model.load_state_dict(part_of(tensors, "average"))
    figures = evaluate_held_out(model, torch.from_numpy(faces.pixels[held_out]), config)
    return {f"held_out_{name}": value for name, value in figures.items()}


def _newest(run: Path) -> Checkpoint:
    saved = find_checkpoint(run, SINGLE_PROCESS)
    if saved is None:
        raise CheckpointError(f"{run}: has no checkpoint")
    return saved


def _like(value: Tensor, name: str, other: Checkpoint, run: Path) -> Tensor:
    """The tensor of that name in another checkpoint; CheckpointError unless it is one of the same networks."""
    found = other.tensors.get(name)
    if found is None or found.shape != value.shape:
        raise CheckpointError(f"{run}: has other networks than the first run")
    flow = ".inner." in name or ".outer." in name
    if name.startswith("average_prior.") and not flow and not torch.equal(found, value):
        raise CheckpointError(f"{run}: has another mixture, or another flow, than the first run")
    return found
