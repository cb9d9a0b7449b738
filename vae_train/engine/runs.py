"""Open finished runs: the folder, a checkpoint, the network."""

from __future__ import annotations

import sys
from pathlib import Path

from vae_train.config import CONFIG_FILE, TrainConfig
from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.state import BEST, CHECKPOINTS, load_weights
from vae_train.errors import CheckpointError, UsageError
from vae_train.model.networks import VAE


def find_run(source: Path) -> Path:
    """The folder of a run, given itself or the path of one of its checkpoints; UsageError for anything else."""
    run = source.resolve().parent.parent if source.is_file() else source
    if not (run / CONFIG_FILE).is_file():
        raise UsageError(f"{source}: neither a run nor a checkpoint of one")
    return run


def load_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint at this path, or the best one of a run's folder if it stops early, else its newest good one.

    Raises CheckpointError if there is none.
    """
    if source.is_file():
        return checkpoint.load(source)
    saved, damaged = checkpoint.load_latest(source / (BEST if (source / BEST).is_dir() else CHECKPOINTS))
    for sentence in damaged:
        print(f"warning: {sentence}; using the one before it", file=sys.stderr)
    if saved is None:
        raise CheckpointError(f"{source}: holds no checkpoint that can be read; train the run first")
    return saved


def load_run(source: Path) -> tuple[TrainConfig, Checkpoint, VAE]:
    """The settings, the checkpoint and the network with averaged weights, in eval mode, of a run or one checkpoint."""
    config = TrainConfig.load(find_run(source))
    saved = load_checkpoint(source)
    model = VAE.from_config(config).eval()
    load_weights(model, saved)
    return config, saved, model
