"""A run that is killed twenty times, half of them inside a save, ends with the bits of one that never was."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from vae_train.config import TrainConfig
from vae_train.engine import checkpoint, step
from vae_train.engine import train as loop
from vae_train.engine.checkpoint import load_latest
from vae_train.engine.logger import read_metrics
from vae_train.engine.state import CHECKPOINTS

KILLS = 20
CPU = torch.device("cpu")


def die_at(module: Any, name: str, call: int) -> None:
    """Let `module.name` kill this process instead of doing its work, the `call`-th time."""
    real, calls = getattr(module, name), iter(range(1, 10**9))

    def deadly(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(module, name, deadly)


def run_and_die(config: TrainConfig, run: Path, place: str | None, call: int) -> None:
    """In a process of its own: go on with the run, and be killed at the `call`-th arrival at `place`."""
    if place == "step":
        die_at(step, "train_step", call)
    elif place == "fsync":
        die_at(checkpoint.os, "fsync", call)
    elif place in ("replace", "unlink"):
        die_at(checkpoint.Path, place, call)
    loop.train(config, run, CPU, resume=(run / "config.json").exists())


def moments() -> list[tuple[str, int]]:
    rng = random.Random(7)
    inside = [(rng.choice(["fsync", "replace", "unlink"]), rng.randint(1, 12)) for _ in range(KILLS // 2)]
    between = [("step", rng.randint(1, 11)) for _ in range(KILLS // 2)]
    order = inside + between
    rng.shuffle(order)
    return order


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_twenty_kills_leave_no_trace(faces_zip, tmp_path):
    config = TrainConfig(data=str(faces_zip), epochs=40, batch_size=50, latent_dim=8, flip=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vae_train.engine.train"])

    def go(run: Path, place: str | None = None, call: int = 0) -> int:
        process = context.Process(target=run_and_die, args=(config, run, place, call))
        process.start()
        process.join()
        return int(process.exitcode or 0)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert go(whole) == 0
    for place, call in moments():
        assert go(killed, place, call) == -signal.SIGKILL, f"ended before call {call} of {place}"
    assert go(killed) == 0

    one, other = (load_latest(run / CHECKPOINTS) for run in (whole, killed))
    assert one[0] is not None
    assert other[0] is not None
    assert not other[1]
    assert all(torch.equal(value, other[0].tensors[name]) for name, value in one[0].tensors.items())
    clock = {"images_per_second": 0}
    assert [line | clock for line in read_metrics(whole)] == [line | clock for line in read_metrics(killed)]
