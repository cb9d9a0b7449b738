"""The commands of README and docs that train and measure, run on a few pictures for a few steps."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from documents import PAGES, ROOT, commands_of, words_of
from PIL import Image

pytest.importorskip("torch")

from vae_train.__main__ import main
from vae_train.adversarial import refine as recipe
from vae_train.adversarial import state, steps
from vae_train.export import quantize

COMMANDS = sorted({line for page in PAGES for line in commands_of(page)})
TRAINING = [
    line for line in COMMANDS if words_of(line)[:3] in (["python", "-m", "vae_train"], ["python", "-m", "benchmarks"])
]
NOT_RUN = {
    "python -m benchmarks gpu exported/anime-64 --data avatars --out gpu-results": "takes minutes: test_gpu.py",
    "python -m benchmarks inference --threads 1 --batches 1 --seconds 1": "times runtimes: test_inference.py",
    "python -m benchmarks inference --threads 1,2 --batches 1,8,64 --seconds 1": "times runtimes: test_inference.py",
    "python -m benchmarks parity exported/anime-64": "runs a dozen runtimes: test_parity.py",
    "python -m benchmarks parity exported/anime-64 --card --json parity.json": "runs a dozen runtimes: test_parity.py",
    "python -m benchmarks parity exported/avatars-64": "runs a dozen runtimes: test_parity.py",
    "python -m benchmarks refine": "times training: test_second_stage.py",
    "python -m benchmarks training": "times training: test_training_speed.py",
    "python -m benchmarks training --device cuda": "needs a GPU",
    "python -m vae_train --data hf:huggan/anime-faces --epochs 80": "needs the network: test_data.py",
    "python -m vae_train crop photos/ --out faces/": "needs photos of faces: test_crop.py",
    "python -m vae_train variants exported/anime-64 --data anime-faces-64.zip": "needs the data set: test_variants.py",
    "torchrun --nproc-per-node 8 --max-restarts 3 -m vae_train --data faces.zip": "8 processes: test_distributed.py",
}
"""Commands that no test can run as they stand, with the reason, or the test of the same code."""
FEW = {
    "train": ["--epochs", "1", "--batch-size", "8", "--device", "cpu"],
    "refine": ["--images", "8", "--follow", "4", "--batch-size", "4", "--side", "32", "--device", "cpu"],
    "evaluate": ["--device", "cpu"],
}
"""Options behind those of a command, which limit it."""
ORDER = ("train", "resume", "refine", "refine resume", "export", "evaluate", "crop", "triton")


def kind_of(words: list[str]) -> str:
    """ "train", or the verb; with "resume" for a command that continues a run."""
    verb = words[0] if words and not words[0].startswith("--") else "train"
    return {"train": "resume"}.get(verb, f"{verb} resume") if "--resume" in words else verb


def write_pictures(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(40):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the commands name. Models are copies: some commands write into them."""
    shutil.copytree(ROOT / "exported", tmp_path / "exported")
    for seed, name in enumerate(("faces", "photos")):
        write_pictures(tmp_path / name, seed)
    for seed, name in enumerate(("faces", "more", "held-out", "anime-faces-64", "anime-faces-64-more"), 2):
        write_pictures(tmp_path / name / "archive", seed)
        shutil.make_archive(str(tmp_path / name), "zip", tmp_path / name / "archive")
        shutil.rmtree(tmp_path / name / "archive")
    rows = [f"{index:02d}.png,{('red', 'blue')[index % 2]}" for index in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,hair", *rows]) + "\n")
    monkeypatch.setattr(steps, "WARM_UP", 1)
    monkeypatch.setattr(recipe, "_IMITATION", 2)
    monkeypatch.setattr(state, "_POOL", 8)
    monkeypatch.setattr(quantize, "BATCHES", (1,))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_command_is_run_or_excused():
    assert NOT_RUN.keys() <= set(TRAINING)
    for line in set(TRAINING) - NOT_RUN.keys():
        assert kind_of(words_of(line)[3:]) in ORDER, line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:running on the CPU")
def test_the_commands_of_training_run(place, capsys):
    """All in one folder, each after those that it builds on."""
    commands = [words_of(line)[3:] for line in TRAINING if line not in NOT_RUN]
    assert len(commands) >= 20
    for words in sorted(commands, key=lambda words: (ORDER.index(kind_of(words)), words)):
        kind = kind_of(words)
        limits = FEW.get(kind.partition(" ")[0], FEW["train"] if kind == "resume" else [])
        if "--resume" in words:
            limits = limits[-2:]  # its settings are those of the run
        elif "--out" in words and kind in ("train", "refine"):
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)  # two lines of docs give one name
        if "avatars" in words or (kind == "train" and "--data" not in words):
            limits = [*limits, "--avatars", "64"]
        for option in ("--inverse", "--gap"):
            limits = [*limits, option, "2"] if option in words else limits
        assert main([*words, *limits]) == 0, words
    assert Path("my-model", "config.json").is_file()
    assert Path("restorations.png").is_file()
    assert len(os.listdir("models")) == 2
