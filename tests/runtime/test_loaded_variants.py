"""Smaller graphs beside those in float32: which are opened, and what is said where they are not there."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hub_stand_in import hub
from tiny_model import DIM, SIZE, build_model

from vae_runtime import VAE, InputError, ModelConfig, ModelFileError
from vae_runtime.__main__ import main
from vae_runtime.config import INVERSE_FILE, VARIANTS, graph_files


@pytest.fixture
def model(tmp_path):
    """The tiny model; its variants are the graphs of other weights, so that an answer tells which were opened."""
    plain = build_model(tmp_path / "model")
    others = {None: plain}
    digests = dict(ModelConfig.load(plain.folder).files)
    for seed, variant in enumerate(VARIANTS, 1):
        others[variant] = build_model(tmp_path / variant, seed=seed)
        for source, target in zip(graph_files(), graph_files(variant), strict=True):
            shutil.copy(others[variant].folder / source, plain.folder / target)
            digests[target] = hashlib.sha256((plain.folder / target).read_bytes()).hexdigest()
    dataclasses.replace(ModelConfig.load(plain.folder), files=digests).save(plain.folder)
    return others


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_the_variant_that_was_asked_for_is_opened(model, variant, rng):
    faces = rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    vae = VAE.load(model[None].folder, variant=variant, device="cpu")
    for opened in (vae, pickle.loads(pickle.dumps(vae))):
        assert opened.variant == variant
        mu, _ = opened.encode(faces)
        np.testing.assert_allclose(mu, model[variant].encode(faces)[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(opened.decode(mu), model[variant].decode(mu))


def test_a_variant_that_is_none(tiny):
    with pytest.raises(InputError, match="variant: got 'fp8', expected None, 'fp16' or 'int8'"):
        VAE.load(tiny.folder, variant="fp8")


def test_a_model_without_variants(tiny):
    with pytest.raises(ModelFileError, match="has no variant int8; load it with variant=None"):
        VAE.load(tiny.folder, variant="int8", device="cpu")


def test_a_copy_of_the_model_without_its_variants(model):
    """As in the wheel: config.json names them, and the files are not there."""
    folder = model[None].folder
    for variant in VARIANTS:
        for file in graph_files(variant):
            (folder / file).unlink()
    assert VAE.load(folder, device="cpu").variant is None
    with pytest.raises(ModelFileError, match=r"encoder\.fp16\.onnx"):
        VAE.load(folder, variant="fp16", device="cpu")


def test_a_damaged_variant_is_refused_when_it_is_opened(model):
    (model[None].folder / "decoder.int8.onnx").write_bytes(b"\x08\x0a")
    VAE.load(model[None].folder, device="cpu")
    with pytest.raises(ModelFileError, match=r"decoder\.int8\.onnx: .*SHA-256"):
        VAE.load(model[None].folder, variant="int8", device="cpu")


def test_fp16_takes_no_codes_that_float16_cannot_follow(model):
    folder, code = model[None].folder, np.full(DIM, 2000.0)
    assert VAE.load(folder, device="cpu").decode(code).shape == (1, SIZE, SIZE, 3)
    with pytest.raises(InputError, match=r"z: 2000 at index \(0, 0\), .*1000"):
        VAE.load(folder, variant="fp16", device="cpu").decode(code)


def test_the_command_line_knows_variants(model, tmp_path, capsys):
    folder = str(model[None].folder)
    assert main(["info", folder, "--device", "cpu", "--variant", "int8"]) == 0
    assert "int8, of float32, fp16, int8" in capsys.readouterr().out
    out = str(tmp_path / "samples.png")
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--model", folder, "--variant", "int4", "-o", out])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_only_the_graphs_that_are_asked_for_are_fetched(model, tmp_path):
    pytest.importorskip("huggingface_hub")
    code = "from vae_runtime import VAE; print(VAE.load('hf:someone/tiny', variant='fp16', device='cpu').variant)"
    with hub("models", "someone/tiny", model[None].folder) as (endpoint, log):
        env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "PATH": "/usr/bin:/bin"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "fp16\n", done.stderr
    assert {file for file in files_of(model) if any(line.endswith(f"/{file}") for line in log)} == {
        "config.json",
        *graph_files("fp16"),
        INVERSE_FILE,
    }


def files_of(model):
    return {path.name for path in model[None].folder.iterdir()}
