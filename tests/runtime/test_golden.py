"""Golden vectors: made at export, checked by every front end."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from tiny_model import build_model

from vae_runtime import VAE, ModelConfig, ModelFileError
from vae_runtime.__main__ import main
from vae_runtime.golden import Golden
from vae_runtime.hub import bundled_model
from vae_train.export.golden import write_golden


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny model, with golden vectors."""
    place = shutil.copytree(tiny.folder, tmp_path / "model")
    write_golden(place)
    return place


def test_the_vectors_are_what_the_graphs_give(folder, tiny):
    vectors = Golden.load(folder)
    np.testing.assert_allclose(vectors.image, tiny.decode(vectors.z), atol=1)
    for found, expected in zip((vectors.mu, vectors.logvar), tiny.encode(vectors.image), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with VAE.load(folder, device="cpu") as vae:
        assert vectors.check(vae) == (0, 0)


def test_codes_that_are_not_numbers_are_no_match(folder, tiny, monkeypatch):
    vectors = Golden.load(folder)
    with VAE.load(folder, device="cpu") as vae:
        monkeypatch.setattr(vae, "encode", lambda image: (vectors.mu, np.full_like(vectors.logvar, np.nan)))
        assert not vectors.check(vae).within()


@pytest.mark.parametrize("shipped", sorted(bundled_model().parent.iterdir()), ids=lambda folder: folder.name)
def test_shipped_models_and_their_variants_pass(shipped):
    variants = [None, *(kind for kind in ("fp16", "int8") if (shipped / f"decoder.{kind}.onnx").is_file())]
    for variant in variants:
        with VAE.load(shipped, device="cpu", variant=variant) as vae:
            assert Golden.load(shipped).check(vae).within(variant), variant


def test_the_same_model_has_the_same_bytes_and_keeps_its_other_files(folder, tiny):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_golden(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert all((tiny.folder / name).read_bytes() == before[name] for name in ("encoder.onnx", "decoder.onnx"))
    assert dict(ModelConfig.load(folder).files).items() > dict(ModelConfig.load(tiny.folder).files).items()


def test_another_model_differs_and_the_command_says_so(folder, tiny, capsys):
    assert main(["check", str(folder), "--device", "cpu"]) == 0
    assert "pictures differ by at most 0 of 255" in capsys.readouterr().out
    other = build_model(folder.parent / "other", seed=1)  # of the same id, so only the numbers tell
    vectors = (folder / "golden.json").read_bytes()
    write_golden(other.folder)
    digest = dict(ModelConfig.load(folder).files)["golden.json"]
    text = (other.folder / "config.json").read_text()
    (other.folder / "config.json").write_text(
        text.replace(dict(ModelConfig.load(other.folder).files)["golden.json"], digest)
    )
    (other.folder / "golden.json").write_bytes(vectors)
    assert main(["check", str(other.folder), "--device", "cpu"]) == 1
    assert "more than expected" in capsys.readouterr().out


def damage(name, fields):
    """Change the vectors as `name` says."""
    if name == "digest":
        fields["sha256"]["z"] = "0" * 64
    elif name == "model":
        fields["model_id"] = "another"
    elif name == "missing":
        del fields["mu"]
    elif name == "kind":
        fields["image"] = 7
    return fields


@pytest.mark.parametrize("name", ["digest", "model", "missing", "kind", "list"])
def test_vectors_that_do_not_fit_are_refused(folder, name):
    fields = damage(name, json.loads((folder / "golden.json").read_text()))
    data = json.dumps([fields] if name == "list" else fields)
    (folder / "golden.json").write_text(data)
    with pytest.raises(ModelFileError, match="damaged or of another export"):
        Golden.load(folder)
    text = (folder / "config.json").read_text()
    old = dict(ModelConfig.load(folder).files)["golden.json"]
    (folder / "config.json").write_text(text.replace(old, hashlib.sha256(data.encode()).hexdigest()))
    with pytest.raises(ModelFileError, match="not the golden vectors of this model"):
        Golden.load(folder)


def test_a_model_without_vectors_says_what_to_do(tiny):
    with pytest.raises(ModelFileError, match=r"no golden\.json in it"):
        Golden.load(tiny.folder)


def test_the_bundled_model_holds_to_its_own():
    with VAE.load(device="cpu") as vae:
        found = Golden.load(bundled_model()).check(vae)
    assert found.pixels <= 1
    assert found.codes < 1e-4
