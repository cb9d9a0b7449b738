"""Two processes on one machine, through torchrun and gloo, as a user would start them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from vae_train.engine.checkpoint import load_latest
from vae_train.engine.distributed import DistributedContext, GlobalBatchNorm2d, synchronize_batch_norm
from vae_train.engine.logger import read_metrics
from vae_train.engine.state import CHECKPOINTS
from vae_train.model.networks import VAE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="gloo and signals")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    common = ["--batch-size", "50", "--latent-dim", "16", "--precision", "float32", "--device", "cpu"]
    return ["-m", "vae_train", "--data", str(data), "--out", str(run), *common, *more]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        for child in workers(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(process.pid).children() if "vae_train" in child.cmdline()]
    return []


def wait_for_epochs(run: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(read_metrics(run)) < count:
        assert time.monotonic() < deadline, f"no {count} epochs in {run}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["--preset", "base", "--image-size", "32", "--free-bits", "0.02"]])
def test_two_processes_train_as_one(faces_zip, tmp_path, settings):
    """The same global batch: each logged loss within 1e-5, BatchNorm's statistics those of the whole batch.

    The learning rate is small, because Adam makes steps of its size out of the rounding of gradients that are nearly 0:
    at 1e-3 one process with one thread and with two threads differ by 1e-4 after 16 steps.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    epochs = ["--epochs", "2", "--learning-rate", "5e-5", *settings]
    # One thread, as torchrun gives its workers: another number rounds differently.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments(faces_zip, one, *epochs)], check=True, capture_output=True, env=alone)
    with started([*TORCHRUN, *arguments(faces_zip, two, *epochs)]) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "on 2 processes" in said
    assert said.count("faces of blobs.zip") == 1  # one of them speaks
    single_run, together = read_metrics(one), read_metrics(two)
    assert len(single_run) == len(together) == 2
    for single, double in zip(single_run, together, strict=True):
        for name in ("train_negative_elbo", "held_out_negative_elbo"):
            assert double[name] == pytest.approx(single[name], rel=1e-5), name
    assert (two / "exported" / "encoder.onnx").exists()


@pytest.mark.slow
def test_a_killed_process_takes_the_others_down(faces_zip, tmp_path):
    run = tmp_path / "run"
    with started([*TORCHRUN, *arguments(faces_zip, run, "--epochs", "100000")]) as process:
        wait_for_epochs(run, 2)
        children = workers(process)
        assert len(children) == 2
        children[1].kill()
        killed = time.monotonic()
        process.communicate(timeout=60)
        assert process.returncode != 0
        assert time.monotonic() - killed < 60
        assert not any(child.is_running() and child.status() != "zombie" for child in children)
    assert load_latest(run / CHECKPOINTS)[0] is not None


@pytest.mark.slow
def test_torchrun_starts_it_again_from_the_last_checkpoint(faces_zip, tmp_path):
    run = tmp_path / "run"
    with started([*TORCHRUN, "--max-restarts", "1", *arguments(faces_zip, run, "--epochs", "60")]) as process:
        wait_for_epochs(run, 3)
        workers(process)[1].kill()
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert [line["epoch"] for line in read_metrics(run)] == list(range(1, 61))
    assert said.count("faces of blobs.zip") == 2
    assert "starting from the first epoch" not in said


@pytest.mark.slow
def test_sigterm_saves_on_all(faces_zip, tmp_path):
    run = tmp_path / "run"
    with started([*TORCHRUN, *arguments(faces_zip, run, "--epochs", "100000")]) as process:
        wait_for_epochs(run, 2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(re.findall("a checkpoint is saved", said)) == 1, said
    saved, damaged = load_latest(run / CHECKPOINTS)
    assert saved is not None
    assert not damaged


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(faces_zip, tmp_path):
    with started([*TORCHRUN, *arguments(faces_zip, tmp_path / "run", "--batch-size", "51")]) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: --batch-size 51: not a multiple of the 2 processes" in said


def test_a_single_process_needs_no_connection():
    value = torch.arange(6.0)
    context = DistributedContext()
    assert context.is_main
    assert torch.equal(context.all_reduce_mean(value), value)
    assert torch.equal(context.shard(value), value)
    assert context.all_reduce_max(15) == 15
    assert [DistributedContext(rank, 3).shard(value).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_the_environment_of_torchrun_is_read(monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert DistributedContext.from_environment() == DistributedContext(5, 8, 1)


def test_global_batch_norm_keeps_names_weights_and_the_answer():
    model = VAE(32, 4).eval()
    image, eps = torch.rand(2, 3, 32, 32), torch.zeros(2, 4)
    before, names = model(image, eps)[0], list(model.state_dict())
    synchronize_batch_norm(model, torch.device("cpu"))
    model.eval()
    kinds = {type(layer) for layer in model.modules()}
    assert GlobalBatchNorm2d in kinds
    assert nn.BatchNorm2d not in kinds
    assert list(model.state_dict()) == names
    assert torch.equal(model(image, eps)[0], before)
