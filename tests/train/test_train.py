from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from blobs import write_faces

from vae_train.config import TrainConfig
from vae_train.engine import checkpoint, loader
from vae_train.engine import step as loop
from vae_train.engine.device import choose_precision
from vae_train.engine.held_out import evaluate_held_out
from vae_train.engine.logger import read_metrics
from vae_train.engine.run_folder import SKIPPED_FILE, Interrupted
from vae_train.engine.state import CHECKPOINTS, load_weights, make_state
from vae_train.engine.train import train
from vae_train.errors import CheckpointError, DataError, TrainingError, UsageError

CPU = torch.device("cpu")


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved, _ = checkpoint.load_latest(run / CHECKPOINTS)
    assert saved is not None
    return saved.tensors


def logged(run: Path) -> list[dict]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in read_metrics(run)]


def assert_same_run(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert logged(one) == logged(other)


def test_a_run_leaves_what_the_design_says(finished, config):
    names = {path.name for path in finished.iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "figures"}
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert figures == {
        "real_images.png",
        "reconstructions.png",
        "prior_samples.png",
        "interpolations.png",
        "training_curve.png",
    }
    assert TrainConfig.load(finished) == dataclasses.replace(config, precision=choose_precision("auto", CPU))
    records = read_metrics(finished)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    wanted = {"train_negative_elbo", "train_reconstruction", "train_kl", "images_per_second"}
    wanted |= {f"held_out_{n}" for n in ("negative_elbo", "reconstruction", "kl", "bits_per_dim", "psnr")}
    assert wanted <= records[0].keys()
    for record in records:
        total = record["held_out_reconstruction"] + record["held_out_kl"]
        assert record["held_out_negative_elbo"] == pytest.approx(total)


def test_the_loss_falls(finished):
    records = read_metrics(finished)
    assert records[-1]["train_negative_elbo"] < 0.95 * records[0]["train_negative_elbo"]


@pytest.mark.slow
def test_the_seed_decides(finished, config, tmp_path):
    train(config, tmp_path / "again", CPU)
    assert_same_run(finished, tmp_path / "again")


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Ctrl-C in the middle of the given batch of the run."""
    real = loop.squared_error
    seen = 0

    def counted(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        if torch.is_grad_enabled():
            seen += 1
            if seen == batches:
                signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(loop, "squared_error", counted)


@pytest.mark.parametrize(
    "cuts", [[5], *(pytest.param(cuts, marks=pytest.mark.slow) for cuts in ([1], [4], [9], [2, 3, 4]))]
)
def test_a_resumed_run_is_the_same_to_the_bit(finished, config, tmp_path, monkeypatch, cuts):
    """4 batches an epoch: cut in the first epoch, at its edge, later, and three times."""
    run = tmp_path / "cut"
    for number, batches in enumerate(cuts):
        with monkeypatch.context() as patch:
            stop_after(patch, batches)
            with pytest.raises(Interrupted) as caught:
                train(config, run, CPU, resume=number > 0)
            assert caught.value.exit_status == 130
    train(config, run, CPU, resume=True)
    assert_same_run(finished, run)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_so_is_one_with_every_setting_and_another_loader(config, tmp_path, monkeypatch, streamed):
    """Cut where the data lay in memory, it goes on from the stream, and the other way round."""
    everything = {
        "likelihood": "gaussian",
        "flip": True,
        "schedule": "cosine",
        "warmup": 3,
        "clip": 500.0,
        "sharpness": 0.5,
    }
    config = dataclasses.replace(config, **everything, preset="base", free_bits=0.05)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config, whole, CPU)
    with monkeypatch.context() as patch:
        if streamed:
            patch.setattr(loader, "free_memory", lambda device: 0.0)
        stop_after(patch, 6)
        with pytest.raises(Interrupted):
            train(config, cut, CPU)
    if not streamed:
        monkeypatch.setattr(loader, "free_memory", lambda device: 0.0)
    train(config, cut, CPU, resume=True)
    assert_same_run(whole, cut)


@pytest.mark.slow
def test_more_epochs_go_on_where_the_run_ended(finished, config, tmp_path):
    run = tmp_path / "short"
    train(dataclasses.replace(config, epochs=2), run, CPU)
    train(config, run, CPU, resume=True)
    assert_same_run(finished, run)


def test_a_damaged_checkpoint_is_passed_over(finished, config, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "damaged")
    newest = max((run / CHECKPOINTS).glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    train(config, run, CPU, resume=True)
    assert newest.name in capsys.readouterr().err
    assert_same_run(finished, run)


def test_other_pictures_are_refused_at_resume(config, tmp_path):
    data = write_faces(tmp_path / "a.zip", 120)
    run = tmp_path / "run"
    config = dataclasses.replace(config, data=str(data), epochs=1)
    train(config, run, CPU)
    write_faces(data, 121)
    with pytest.raises(DataError, match=r"--resume: a\.zip"):
        train(config, run, CPU, resume=True)


def test_weights_of_another_network_are_refused(config, finished):
    other = make_state(dataclasses.replace(config, latent_dim=8), CPU)
    saved, _ = checkpoint.load_latest(finished / CHECKPOINTS)
    with pytest.raises(CheckpointError, match="another network"):
        load_weights(other.model, saved)


def test_one_process_a_run(config, tmp_path):
    from filelock import FileLock

    run = tmp_path / "run"
    run.mkdir()
    with FileLock(run / ".lock"), pytest.raises(UsageError, match="another process"):
        train(config, run, CPU)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(dataclasses.replace(config, epochs=1), run, CPU)
    before = {path.name: path.read_bytes() for path in (run / CHECKPOINTS).iterdir()}
    real = loop.squared_error
    monkeypatch.setattr(loop, "squared_error", lambda *a: real(*a) * (float("nan") if torch.is_grad_enabled() else 1))
    with pytest.raises(TrainingError, match="epoch 2"):
        train(config, run, CPU, resume=True)
    assert {path.name: path.read_bytes() for path in (run / CHECKPOINTS).iterdir()} == before


def test_fewer_pictures_than_a_batch_are_refused(tmp_path):
    data = write_faces(tmp_path / "few.zip", 20)
    with pytest.raises(DataError, match=r"20 pictures.*fewer than one batch of 128"):
        train(TrainConfig(data=str(data)), tmp_path / "run", CPU)


def test_what_is_left_out_is_listed_in_the_run(config, tmp_path, capsys):
    data = write_faces(tmp_path / "a.zip", 200)
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("broken.png", b"no picture")
        archive.writestr("notes.txt", b"text")
    run = tmp_path / "run"
    train(dataclasses.replace(config, data=str(data), epochs=1), run, CPU)
    lines = (run / SKIPPED_FILE).read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["broken.png", "notes.txt"]
    assert "notes.txt" in capsys.readouterr().err


def test_evaluation_is_repeatable_and_right(config):
    model = make_state(config, CPU).model
    pixels = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = evaluate_held_out(model, pixels, config)
    assert first == evaluate_held_out(model, pixels, config)
    with torch.no_grad():
        image = pixels.float() / 255
        mu, _ = model.eval().encoder(image)
        mse = (model.decoder(mu) - image).square().mean((1, 2, 3))
    assert first["psnr"] == pytest.approx((10 * torch.log10(1 / mse)).mean().item(), abs=1e-4)
    assert first["negative_elbo"] == pytest.approx(first["reconstruction"] + first["kl"])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_go_on(faces_zip, tmp_path, number, status):
    run = tmp_path / "run"
    arguments = ["--data", str(faces_zip), "--epochs", "100000", "--batch-size", "50", "--out", str(run)]
    command = [sys.executable, "-m", "vae_train", *arguments, "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == status, said
    assert f"--out {run} --resume" in said
    saved, damaged = checkpoint.load_latest(run / CHECKPOINTS)
    assert saved is not None
    assert not damaged


@pytest.mark.slow
def test_a_run_in_another_thread(finished, config, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, config, tmp_path / "run", CPU).result()
    assert_same_run(finished, tmp_path / "run")


def test_config_reads_only_what_it_wrote(tmp_path, config):
    (tmp_path / "config.json").write_text(config.to_json())
    assert TrainConfig.load(tmp_path) == config
    for text in ("{", "[]", json.dumps({"epochs": 3, "surprise": 1}), '{"epochs": "many"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UsageError):
            TrainConfig.load(tmp_path)
