from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vae_train import commands
from vae_train.__main__ import main
from vae_train.commands import default_run
from vae_train.config import TrainConfig, make_config, resumed_config
from vae_train.errors import UsageError

BAD = {
    "unknown option": ["--bach-size", "3"],
    "unknown command": ["trian"],
    "a stray word": ["train", "now"],
    "no epochs": ["--epochs", "0"],
    "negative epochs": ["--epochs", "-5"],
    "half an epoch": ["--epochs", "1.5"],
    "no batch": ["--batch-size", "0"],
    "batch of one": ["--batch-size", "1"],
    "rate nan": ["--learning-rate", "nan"],
    "rate inf": ["--learning-rate", "inf"],
    "rate negative": ["--learning-rate", "-1"],
    "rate huge": ["--learning-rate", "1e9"],
    "rate text": ["--learning-rate", "fast"],
    "beta negative": ["--beta", "-1"],
    "size 63": ["--image-size", "63"],
    "size 48": ["--image-size", "48"],
    "size 0": ["--image-size", "0"],
    "no latents": ["--latent-dim", "0"],
    "seed negative": ["--seed", "-1"],
    "unknown preset": ["--preset", "huge"],
    "no value": ["--epochs"],
    "no data": ["--data", "missing/"],
    "empty data": ["--data", ""],
    "folder without pictures": ["--data", "empty"],
    "file that is no archive": ["--data", "notes.txt"],
    "bad address": ["--data", "hf:nobody"],
    "unknown schedule": ["--schedule", "linear"],
    "unknown likelihood": ["--likelihood", "laplace"],
    "unknown precision": ["--precision", "float8"],
    "clip negative": ["--clip", "-1"],
    "free bits negative": ["--free-bits", "-0.1"],
    "a flip with a value": ["--flip", "yes"],
    "tensorboard is not there": ["--tensorboard"],
    "unknown device": ["--device", "tpu"],
    "no such device": ["--device", "cuda:99"],
    "existing run": ["--out", "run"],
    "existing file": ["--out", "notes.txt"],
    "folder of other things": ["--out", "full"],
    "nothing to resume": ["--resume", "--out", "nothing"],
    "resume without a run": ["--resume", "--out", "full"],
    "resume of another model": ["--resume", "--out", "run", "--latent-dim", "64"],
    "resume with another size": ["--resume", "--out", "run", "--image-size", "64"],
    "resume of a cosine with more epochs": ["--resume", "--out", "cosine", "--epochs", "6"],
    "resume with fewer epochs": ["--resume", "--out", "run", "--epochs", "1"],
    "export of nothing": ["export", "nothing"],
    "export without a run": ["export"],
    "export of a folder": ["export", "full"],
    "export into other things": ["export", "run", "--out", "full"],
    "export with a bad name": ["export", "run", "--name", "a/b"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(TrainConfig(epochs=5).to_json())
    (tmp_path / "cosine").mkdir()
    (tmp_path / "cosine" / "config.json").write_text(TrainConfig(epochs=5, schedule="cosine").to_json())
    return tmp_path


@pytest.mark.parametrize("name", BAD)
def test_bad_command_lines_exit_with_2_one_sentence_and_write_nothing(name, place, capsys, monkeypatch):
    monkeypatch.setattr("vae_train.data.faces.load_image", None)  # reading a picture would fail
    real = commands.find_spec
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with pytest.raises(SystemExit) as caught:
        main(BAD[name])
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def said(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit):
        main(arguments)
    return capsys.readouterr().err


def test_the_sentences_help(place, capsys):
    assert "did you mean --batch-size?" in said(["--bach-size", "3"], capsys)
    assert "multiple of 32" in said(["--image-size", "48"], capsys)
    assert "add --resume" in said(["--out", "run"], capsys)
    differing = said(["--resume", "--out", "run", "--latent-dim", "64", "--seed", "4"], capsys)
    assert "--latent-dim 64 (the run has 128)" in differing
    assert "--seed 4 (the run has 0)" in differing


def test_bad_command_lines_do_not_import_torch(place):
    code = "import sys; sys.argv = ['x', '--data', 'missing/']\n"
    code += "import runpy\ntry: runpy.run_module('vae_train', run_name='__main__')\n"
    code += "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 False\n", done.stderr


def test_default_run_folders():
    assert default_run({}).as_posix() == "runs/classic-avatars"
    assert default_run({"data": "../my faces/anime.zip"}).as_posix() == "runs/classic-anime"
    assert default_run({"data": "hf:owner/faces"}).as_posix() == "runs/classic-faces"


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for text in ("--data", "--preset", "--epochs", "--out", "--resume", "--device", "avatars", "default: 128"):
        assert text in shown


@pytest.mark.slow
def test_the_main_job(tmp_path):
    """From nothing to figures and graphs with one command, then pictures from the graphs without torch."""
    run = tmp_path / "run"
    command = [sys.executable, "-W", "error::UserWarning:vae", "-m", "vae_train", "--avatars", "300", "--epochs", "2"]
    done = subprocess.run([*command, "--out", str(run), "--device", "cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"graphs:  {run / 'exported'}" in done.stdout
    for name in ("real_images", "reconstructions", "prior_samples", "interpolations", "training_curve"):
        with Image.open(run / "figures" / f"{name}.png") as figure:
            pixels = np.asarray(figure)
        assert min(pixels.shape[:2]) > 150
        assert pixels.std() > 5
    again = subprocess.run([*command, "--out", str(run)], capture_output=True, text=True)
    assert (again.returncode, "add --resume" in again.stderr) == (2, True)

    play = [sys.executable, "-m", "vae_runtime", "sample", "--model", str(run / "exported"), "--device", "cpu"]
    played = subprocess.run([*play, "-o", str(tmp_path / "s.png")], capture_output=True, text=True)
    assert played.returncode == 0, played.stderr
    assert (tmp_path / "s.png").exists()


def test_presets_are_defaults_that_options_overrule():
    base = make_config({"preset": "base"})
    assert (base.image_size, base.likelihood, base.schedule, base.flip) == (64, "gaussian", "cosine", True)
    chosen = make_config({"preset": "base", "image_size": 32, "flip": False})
    assert (chosen.image_size, chosen.likelihood, chosen.flip) == (32, "gaussian", False)


def test_the_precision_that_a_run_found_is_kept(tmp_path):
    (tmp_path / "config.json").write_text(TrainConfig(precision="bfloat16").to_json())
    assert resumed_config(tmp_path, {"precision": "auto"}).precision == "bfloat16"
    with pytest.raises(UsageError, match="--precision float32"):
        resumed_config(tmp_path, {"precision": "float32"})
