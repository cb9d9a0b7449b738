from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import SIZE
from PIL import Image

from vae_runtime import VAE
from vae_runtime.__main__ import main
from vae_runtime.images import image_grid


@pytest.fixture
def pictures(tmp_path, rng):
    paths = []
    for name in ("a b.png", "-c.png"):
        paths.append(tmp_path / name)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(paths[-1])
    return [str(path) for path in paths]


@pytest.fixture
def options(tiny):
    return ["--model", str(tiny.folder), "--device", "cpu"]


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_sample(tmp_path, options, tiny, capsys):
    out = tmp_path / "samples.png"
    assert main(["sample", "-n", "6", "--seed", "3", "--scale", "2", "-o", str(out), *options]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    expected = image_grid(VAE.load(tiny.folder, device="cpu").sample(6, rng=3), scale=2)
    np.testing.assert_array_equal(read(out), expected)


def test_reconstruct(tmp_path, options, pictures):
    out = tmp_path / "r.png"
    assert main(["reconstruct", *pictures, "--scale", "1", "-o", str(out), *options]) == 0
    assert read(out).shape == (2 * SIZE + 2, 2 * SIZE + 2, 3)


@pytest.mark.parametrize(("ending", "frames"), [(".png", 1), (".gif", 5), (".webp", 5)])
def test_interpolate(tmp_path, options, pictures, ending, frames):
    out = tmp_path / f"i{ending}"
    assert main(["interpolate", *pictures, "--steps", "5", "-o", str(out), *options]) == 0
    with Image.open(out) as picture:
        assert getattr(picture, "n_frames", 1) == frames


def test_info(tiny, capsys):
    assert main(["info", str(tiny.folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for text in ("onnxruntime", "tiny", "latent_dim 4", "runs on", "cpu", "CUDA"):
        assert text in printed


BAD = [
    [],
    ["smaple"],
    ["sample", "--sede", "3"],
    ["sample", "-n", "0"],
    ["sample", "-n", "many"],
    ["sample", "--seed", "-1"],
    ["sample", "--temperature", "nan"],
    ["sample", "--device", "gpu"],
    ["sample", "-o", "samples.jpg"],
    ["sample", "-o", "no/such/folder/samples.png"],
    ["reconstruct"],
    ["reconstruct", "missing.png"],
    ["interpolate", "missing.png"],
    ["interpolate", "a.png", "b.png", "--steps", "1"],
    ["interpolate", "a.png", "b.png", "--method", "cubic"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_command_lines_exit_with_2_and_one_sentence(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_misspelt_options_get_a_proposal(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--temprature", "1"])
    assert "did you mean --temperature?" in capsys.readouterr().err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vae_runtime", *arguments], capture_output=True, text=True)


def test_as_a_process(tmp_path, tiny):
    refused = run("sample", "--model", str(tmp_path / "none"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert run("--help").returncode == 0
    shown = run("info", str(tiny.folder), "--device", "cpu")
    assert shown.returncode == 0, shown.stderr
