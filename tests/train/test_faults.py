"""What happens to a run on other people's disks and terminals, and when it diverges."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from blobs import write_faces

from vae_train.__main__ import main
from vae_train.config import TrainConfig, absolute_sources, resumed_config
from vae_train.engine import checkpoint, device, run_folder
from vae_train.engine import train as recipe
from vae_train.engine.distributed import SINGLE_PROCESS
from vae_train.engine.logger import METRICS_FILE, read_metrics
from vae_train.engine.run_folder import GRACE, catch_signals, lock_run
from vae_train.engine.runs import load_checkpoint
from vae_train.engine.state import BEST, CHECKPOINTS
from vae_train.engine.train import train
from vae_train.errors import CheckpointError, DataError, TrainingError, UsageError

CPU = torch.device("cpu")


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def other_format(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def cut_tensors(path: Path) -> None:
    cut(path.with_suffix(".safetensors"))


@pytest.mark.parametrize("damage", [other_format, cut, cut_tensors])
def test_a_resume_that_can_read_no_checkpoint_stops_and_touches_nothing(run, config, damage):
    for path in (run / CHECKPOINTS).glob("*.json"):
        damage(path)
    before = content(run)
    with pytest.raises(CheckpointError, match="step-0"):
        train(dataclasses.replace(config, epochs=9), run, CPU, resume=True)
    assert content(run) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_disk_error_is_not_damage(run, config, monkeypatch, number):
    """Only the newest checkpoint cannot be read: going back to an older one would lose it."""
    newest = max((run / CHECKPOINTS).glob("*.safetensors"))
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name == newest.name:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    before = content(run)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read)
        with pytest.raises(CheckpointError, match=newest.name):
            train(dataclasses.replace(config, epochs=9), run, CPU, resume=True)
        with pytest.raises(CheckpointError, match=newest.name):
            load_checkpoint(run)
    assert content(run) == before


def test_checkpoints_that_are_all_gone_are_not_a_new_run(run, config):
    shutil.rmtree(run / CHECKPOINTS)
    before = content(run)
    with pytest.raises(CheckpointError, match=CHECKPOINTS):
        train(config, run, CPU, resume=True)
    assert content(run) == before


def test_damaged_newer_checkpoints_do_not_push_out_the_one_just_written(tmp_path):
    for step in (1, 7, 8, 9):
        checkpoint.save(tmp_path, checkpoint.Checkpoint(step, {}, {"w": torch.zeros(2)}))
    for step in (7, 8, 9):
        cut(tmp_path / f"step-{step:09d}.json")
    path = checkpoint.save(tmp_path, checkpoint.Checkpoint(2, {}, {"w": torch.ones(2)}))
    assert path.exists()
    found, damaged = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert len(damaged) == 3


@pytest.mark.slow
def test_a_run_resumes_where_its_data_has_moved(faces_zip, config, tmp_path, monkeypatch):
    """The content decides: a renamed archive is given anew; the stored path holds from another working folder."""
    old, new, run = tmp_path / "old.zip", tmp_path / "new" / "other.zip", tmp_path / "run"
    shutil.copy(faces_zip, old)
    monkeypatch.chdir(tmp_path)
    stored = dataclasses.replace(config, data=absolute_sources(["old.zip"]), epochs=1)
    train(stored, run, CPU)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(resumed_config(run, {"epochs": 2}), run, CPU, resume=True)
    new.parent.mkdir()
    old.rename(new)
    train(resumed_config(run, {"epochs": 3, "data": (str(new),)}), run, CPU, resume=True)
    assert [line["epoch"] for line in read_metrics(run)] == [1, 2, 3]
    assert TrainConfig.load(run).data == (str(new),)
    write_faces(new, 190)
    with pytest.raises(DataError, match="--data"):
        train(resumed_config(run, {"epochs": 4, "data": (str(new),)}), run, CPU, resume=True)


def test_settings_of_earlier_versions_are_read(tmp_path):
    saved = json.loads(TrainConfig(data="faces.zip").to_json())
    for name in ("init", "patience", "decoder", "batch_norm"):
        del saved[name]
    (tmp_path / "config.json").write_text(json.dumps(saved | {"data": "faces.zip"}))
    assert TrainConfig.load(tmp_path) == TrainConfig(data="faces.zip")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("latent_dim", 128.5), ("epochs", True), ("epochs", "3"), ("beta", None), ("flip", "yes"), ("labels", 5)),
        *(("data", []), ("data", [3]), ("preset", ["base"])),
    ],
)
def test_settings_of_another_kind_are_refused(tmp_path, name, value):
    saved = json.loads(TrainConfig().to_json())
    (tmp_path / "config.json").write_text(json.dumps(saved | {name: value}))
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        TrainConfig.load(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"config\.json"):
        TrainConfig.load(tmp_path)


def test_a_run_inside_its_data_is_refused(faces_zip, tmp_path, capsys):
    with zipfile.ZipFile(faces_zip) as archive:
        archive.extractall(tmp_path / "faces")
    with pytest.raises(SystemExit) as caught:
        main(["--data", str(tmp_path / "faces"), "--out", str(tmp_path / "faces" / "runs" / "one")])
    assert caught.value.code == 2
    assert "--out" in capsys.readouterr().err
    assert not (tmp_path / "faces" / "runs").exists()


def test_a_disk_that_cannot_flush_folders_costs_one_warning(tmp_path, monkeypatch, capsys):
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", refuse)
    for step in (1, 2):
        checkpoint.save(tmp_path, checkpoint.Checkpoint(step, {}, {}))
    assert capsys.readouterr().err.count(f"warning: {tmp_path}:") == 1


def test_a_folder_flush_that_means_lost_data_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoint.save(tmp_path, checkpoint.Checkpoint(1, {}, {}))


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_disk_without_locks_costs_one_warning(tmp_path, monkeypatch, capsys, error):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run_folder.FileLock, "acquire", refuse)
    with lock_run(tmp_path / "run", SINGLE_PROCESS):
        assert (tmp_path / "run").is_dir()
    assert capsys.readouterr().err.count(f"warning: {tmp_path / 'run'}") == 1


def test_a_figure_that_cannot_be_written_does_not_stop_the_run(config, tmp_path, monkeypatch, capsys):
    def locked(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "reconstructions.png")

    monkeypatch.setattr(recipe, "draw", locked)
    monkeypatch.setattr(recipe, "_DRAW_INTERVAL", 0.0)
    train(config, tmp_path / "run", CPU)
    assert capsys.readouterr().err.count(f"warning: {tmp_path / 'run' / 'figures'}") == 1
    assert len(read_metrics(tmp_path / "run")) == 3


@pytest.mark.parametrize("bad", [b"{", b"null", b"7", b"[]", b'{"epoch": "x"}', b"\xff\xfe", b"{}"])
def test_a_bad_line_of_the_metrics_is_left_out_and_named(run, config, bad, capsys):
    lines = (run / METRICS_FILE).read_bytes().splitlines()
    (run / METRICS_FILE).write_bytes(b"\n".join([lines[0], bad, *lines[1:]]) + b"\n")
    train(config, run, CPU, resume=True)
    assert "invalid line 2" in capsys.readouterr().err
    assert (run / METRICS_FILE).read_bytes().splitlines() == lines


@pytest.mark.slow
def test_a_diverging_run_stops_and_keeps_its_last_checkpoint(config, tmp_path):
    wild = dataclasses.replace(config, learning_rate=1.0, beta=100.0, kl_warmup=0, epochs=5)
    with pytest.raises(TrainingError, match="--learning-rate"):
        train(wild, tmp_path / "run", CPU)
    assert len(read_metrics(tmp_path / "run")) == 2


def test_losses_of_good_runs_are_not_taken_for_divergence(config):
    recipe.check_divergence(3072.0, 1, config, 3072)
    recipe.check_divergence(1e9, 1, config, 3072)  # the first steps start anywhere
    recipe.check_divergence(1e6, 5, dataclasses.replace(config, free_bits=100.0, latent_dim=4096, beta=5.0), 3072)
    with pytest.raises(TrainingError):
        recipe.check_divergence(1e9, 2, config, 3072)
    with pytest.raises(TrainingError):
        recipe.check_divergence(1e9, 0, dataclasses.replace(config, epochs=1), 3072)


def test_a_second_signal_waits_for_the_checkpoint(capfd, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now[0])
    with contextlib.suppress(KeyboardInterrupt), catch_signals(SINGLE_PROCESS) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        assert "SIGINT: saving a checkpoint" in capfd.readouterr().err
        now[0] += GRACE / 2
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_late_second_signal_ends_the_process_and_says_so():
    code = (
        "import signal\nfrom vae_train.engine import run_folder\n"
        "from vae_train.engine.distributed import SINGLE_PROCESS\n"
        "run_folder.GRACE = -1.0\nwith run_folder.catch_signals(SINGLE_PROCESS):\n"
        "    signal.raise_signal(signal.SIGINT)\n    signal.raise_signal(signal.SIGINT)\n    print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert "without saving" in done.stderr
    assert "alive" not in done.stdout


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals")
def test_a_hangup_that_is_ignored_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals(SINGLE_PROCESS) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal_number == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def heed_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("numbers", [["SIGHUP"], ["SIGINT", "SIGINT"], ["SIGTERM", "SIGINT", "SIGTERM"]])
def test_impatient_signals_still_save(faces_zip, tmp_path, numbers):
    run = tmp_path / "a run"
    arguments = ["--data", str(faces_zip), "--epochs", "100000", "--batch-size", "50", "--out", str(run)]
    command = [sys.executable, "-m", "vae_train", *arguments, "--device", "cpu"]
    # Under nohup, SIGHUP is ignored, and so it would be in the run.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_hangup)
    try:
        deadline = time.monotonic() + 120
        while not (run / METRICS_FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        for name in numbers:
            process.send_signal(getattr(signal, name))
            time.sleep(0.05)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    # Of several that are pending at once, Python handles the one with the smallest number first.
    assert process.returncode in {128 + getattr(signal, name) for name in numbers}, said
    assert f"--out '{run}' --resume" in said
    assert checkpoint.load_latest(run / CHECKPOINTS)[0] is not None


@pytest.mark.slow
def test_a_run_stops_early_and_keeps_its_best_weights(config, tmp_path):
    """At this learning rate the held-out loss gets worse again; a resume of the finished run does nothing."""
    hasty = dataclasses.replace(config, epochs=60, patience=2, learning_rate=0.02, ema=0.0)
    run = tmp_path / "run"
    train(hasty, run, CPU)
    records = read_metrics(run)
    best = min(records, key=lambda record: record["held_out_negative_elbo"])["epoch"]
    assert len(records) == best + 2 < 60
    assert load_checkpoint(run).state["epoch"] == best
    assert len(list((run / BEST).glob("*.json"))) == 1
    train(hasty, run, CPU, resume=True)
    assert read_metrics(run) == records


def test_threads_follow_what_is_idle(monkeypatch):
    monkeypatch.setattr(device, "usable_cores", lambda: 4)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for busy, idle in (([0, 0, 0, 0], 4), ([100, 95, 5, 0], 2), ([100, 100, 100, 100], 1), ([99, 40, 40, 40], 2)):
        monkeypatch.setattr(device.psutil, "cpu_percent", lambda *_, percent=busy, **__: list(map(float, percent)))
        assert device.idle_cores() == idle


def test_without_the_training_packages_one_sentence_says_how_to_get_them(tmp_path):
    """In a process that sees none of them, as in an installation of the runtime alone; --help still works."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "onnxscript", "safetensors", "filelock", "sklearn", "psutil"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import importlib.util
real = importlib.util.find_spec
def find_spec(name, *rest):
    try:
        return real(name, *rest)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
from vae_train.__main__ import script
script()
"""
    for arguments, status in ((["--help"], 0), (["--data", "avatars"], 1)):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert done.stderr.count("\n") == status
    assert "torch" in done.stderr
    assert list(tmp_path.iterdir()) == []
