from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vae_runtime import VAE, ModelConfig
from vae_train.__main__ import build_parser, main
from vae_train.config import TrainConfig, make_config
from vae_train.data import avatars
from vae_train.engine.runs import load_checkpoint
from vae_train.engine.state import CHECKPOINTS, load_weights
from vae_train.engine.train import train
from vae_train.errors import CheckpointError, ExportError, UsageError
from vae_train.export import decoder_gradient as inverse
from vae_train.export import export as exporting
from vae_train.export import model_card as card
from vae_train.export.agreement import check_parity
from vae_train.export.export import export
from vae_train.model import networks as model

FILES = {
    *("encoder.onnx", "decoder.onnx", "inverse.onnx", "golden.json", "config.json", "README.md"),
    *card.CARD_FIGURES,
}
PORTABLE = {"Conv", "ConvTranspose", "LeakyRelu", "Add", "Gemm", "Reshape", "Sigmoid", "Flatten"}


@pytest.fixture
def torch_model(finished):
    network = model.VAE(32, 16).eval()
    load_weights(network, load_checkpoint(finished))
    return network


def test_the_folder_is_a_model(exported):
    assert {path.name for path in exported.iterdir()} == FILES
    vae = VAE.load(exported, device="cpu")
    assert (vae.config.preset, vae.image_size, vae.latent_dim) == ("classic", 32, 16)
    assert vae.config.training_data.name == "blobs.zip"
    assert vae.config.training_data.count == 209
    assert vae.config.metrics["held_out_psnr"] > 5
    expected = vae.config.metrics["held_out_reconstruction"] / 3072
    assert vae.config.sigma**2 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
def test_torch_and_runtime_agree(exported, torch_model, batch, rng):
    vae = VAE.load(exported, device="cpu")
    faces = rng.integers(0, 256, (batch, 32, 32, 3), np.uint8)
    with torch.no_grad():
        mu, logvar = torch_model.encoder(torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255)
        picture = torch_model.decoder(mu).permute(0, 2, 3, 1).numpy()
    got_mu, got_logvar = vae.encode(faces)
    np.testing.assert_allclose(got_mu, mu, atol=1e-5)
    np.testing.assert_allclose(got_logvar, logvar, atol=1e-5)
    np.testing.assert_allclose(vae.decode(got_mu), picture * 255, atol=0.51)


@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx"])
def test_the_graph_contract(exported, file):
    graph = onnx.load(exported / file)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 20)]
    assert {node.op_type for node in graph.graph.node} <= PORTABLE
    ports = {
        port.name: [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
        for port in (*graph.graph.input, *graph.graph.output)
    }
    picture, code = ["batch", 3, 32, 32], ["batch", 16]
    assert ports == (
        {"image": picture, "mu": code, "logvar": code} if file == "encoder.onnx" else {"z": code, "image": picture}
    )
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    notes = {entry.key: entry.value for entry in graph.metadata_props}
    assert notes.keys() == {"format_version", "model_id", "config"}
    config = ModelConfig.load(exported)
    assert notes["model_id"] == config.model_id
    assert json.loads(notes["config"])["latent_dim"] == 16
    assert not graph.doc_string
    assert all(not node.doc_string and not node.metadata_props for node in graph.graph.node)


def test_nothing_of_this_machine_is_inside(exported):
    for path in exported.iterdir():
        data = path.read_bytes()
        for text in (b"/home", b"/root", b"/Users", b"/tmp", b"/usr", b"site-packages", b".py"):
            assert text not in data.replace(b"python", b""), f"{path.name} holds {text.decode()}"


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes(finished, exported, tmp_path):
    export(finished, tmp_path / "elsewhere")
    for name in FILES:
        assert (tmp_path / "elsewhere" / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.slow
def test_one_checkpoint_can_be_exported(finished, tmp_path):
    first = min((finished / CHECKPOINTS).glob("*.safetensors"))
    config = export(first, tmp_path / "first", name="first-epoch")
    assert config.name == "first-epoch"
    assert config.metrics["epochs"] == 1
    assert config.model_id != export(finished, tmp_path / "last").model_id


@pytest.mark.slow
def test_an_export_is_replaced_whole(finished, exported, tmp_path):
    out = tmp_path / "model"
    shutil.copytree(exported, out)
    (out / "encoder.onnx").write_bytes(b"damaged")
    export(finished, out)
    assert (out / "encoder.onnx").read_bytes() == (exported / "encoder.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_a_graph_that_differs_is_not_published(finished, tmp_path, monkeypatch):
    out = tmp_path / "model"
    real = exporting.to_onnx

    def wrong(part, example, entry, exits):
        graph = real(part, example, entry, exits)
        weight = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 4)
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return graph

    monkeypatch.setattr(exporting, "to_onnx", wrong)
    with pytest.raises(ExportError, match="differ by"):
        export(finished, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_failure_in_the_middle_leaves_the_old_export(finished, exported, tmp_path, monkeypatch):
    out = tmp_path / "model"
    shutil.copytree(exported, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rename = Path.rename

    def fail(path, target):
        if path.name == "export":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ExportError, match="No space left"):
        export(finished, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_parity_gate_sees_a_difference(exported, torch_model):
    assert check_parity(torch_model, exported) <= 1e-5
    with torch.no_grad():
        torch_model.encoder.mu.bias += 1e-4
    with pytest.raises(ExportError, match="mu at batch 1"):
        check_parity(torch_model, exported)


def test_parity_is_relative_to_the_size_of_large_codes(exported, torch_model, tmp_path):
    """Codes of 1e4 that differ by 1e-4 are rounding, not a fault."""
    folder = shutil.copytree(exported, tmp_path / "model")
    graph = onnx.load(folder / "encoder.onnx")
    bias = next(item for item in graph.graph.initializer if item.name.endswith("mu.bias"))
    large = onnx.numpy_helper.to_array(bias) + np.float32(1e4)
    bias.CopyFrom(onnx.numpy_helper.from_array(large, bias.name))
    data = graph.SerializeToString(deterministic=True)
    (folder / "encoder.onnx").write_bytes(data)
    config = ModelConfig.load(folder)
    files = {**config.files, "encoder.onnx": hashlib.sha256(data).hexdigest()}
    dataclasses.replace(config, files=files).save(folder)
    with torch.no_grad():
        torch_model.encoder.mu.bias += 1e4 + 1e-3
    assert check_parity(torch_model, folder) <= 1e-5
    with torch.no_grad():
        torch_model.encoder.mu.bias += 1.0
    with pytest.raises(ExportError, match="mu at batch 1"):
        check_parity(torch_model, folder)


@pytest.mark.parametrize("part", ["encoder.mu", "decoder.layers.0"])
def test_a_diverged_run_is_not_published_and_named(exported, torch_model, part):
    with torch.no_grad():
        torch_model.get_submodule(part).bias.fill_(torch.nan)
    with pytest.raises(ExportError, match="diverged"):
        check_parity(torch_model, exported)


@pytest.mark.slow
def test_a_wrong_gradient_is_not_published(finished, tmp_path, monkeypatch):
    """A slope of 1 where the LeakyRelu has 0.2: only the comparison with autograd can see it."""
    monkeypatch.setitem(inverse.RULES, "LeakyRelu", lambda pass_, node, upstream: [(node.input[0], upstream)])
    with pytest.raises(ExportError, match=r"gradient of inverse\.onnx: torch and ONNX Runtime differ"):
        export(finished, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_targets_that_hold_other_things_are_refused(finished, tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.doc"):
        export(finished, tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        export(finished, tmp_path / "thesis.doc")


def test_what_is_no_run_is_refused(finished, tmp_path):
    with pytest.raises(UsageError, match="neither a run nor a checkpoint"):
        export(tmp_path, tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    for path in (broken / CHECKPOINTS).glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoint"):
        export(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card(exported):
    text = (exported / "README.md").read_text()
    assert "license:" not in text
    assert "MIT" not in text
    for part in ("blobs.zip", "python -m vae_train", "VAE.load", "limits", "not stated", " seconds on CPU"):
        assert part in text
    assert dataclasses.asdict(ModelConfig.load(exported))["model_id"] in text
    for name in card.CARD_FIGURES:
        assert f"]({name})" in text
        with Image.open(exported / name) as picture:
            assert picture.format == "PNG"
            assert picture.width > 500


@pytest.mark.slow
def test_the_card_states_what_the_owner_states(finished, tmp_path):
    options = ["--license", "apache-2.0", "--data-license", "CC0 1.0", "--tag", "anime", "--tag", "cats"]
    assert main(["export", str(finished), "--out", str(tmp_path / "model"), *options]) == 0
    text = (tmp_path / "model" / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "onnxruntime, anime, cats]" in text
    for part in ("CC0 1.0", "License of the weights: apache-2.0"):
        assert part in text


def test_the_time_on_the_card():
    records = [{"images_per_second": 10.0, "device": "CPU"}, {"images_per_second": 20.0, "device": "GPU"}]
    assert card.training_time(records, 2000) == "5 minutes on CPU, then GPU"  # 200 s and 100 s
    assert card.training_time(records[1:], 1000) == "50 seconds on GPU"
    assert card.training_time([{"images_per_second": 10.0}], 1000) == ""
    parts = [{"images": 1000}, {"images": 1500, "images_per_second": 10.0, "device": "CPU"}, {"epoch": 2}]
    assert card.training_time(parts, 1000) == "50 seconds on CPU"


@pytest.mark.slow
def test_avatars_come_with_known_faces_and_named_directions(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIME_VAE_CACHE", str(tmp_path / "cache"))
    config = TrainConfig(avatars=120, epochs=1, batch_size=50, latent_dim=16, seed=3)
    faces = train(config, tmp_path / "run", torch.device("cpu"))
    export(tmp_path / "run", tmp_path / "out", faces=faces)
    vae = VAE.load(tmp_path / "out", device="cpu")
    assert vae.neighbors is not None
    assert len(vae.neighbors.names) == 120
    face, _ = avatars.draw(17, 32, 3)
    names, pictures, distances = vae.nearest(face, count=2)
    assert names[0][0] == "avatars/3/17"
    assert distances[0, 0] == pytest.approx(0, abs=1e-4)
    assert distances[0, 1] > distances[0, 0]
    np.testing.assert_allclose(pictures[0, 0].astype(int), vae.reconstruct(face)[0].astype(int), atol=1)
    assert "free to use" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_base_is_as_portable_as_classic(faces_zip, tmp_path):
    """BatchNorm folded away, the parity gate passed, both graphs together at most 16 MB."""
    config = make_config({"data": str(faces_zip), "preset": "base", "epochs": 1, "batch_size": 50})
    train(config, tmp_path / "run", torch.device("cpu"))
    described = export(tmp_path / "run", tmp_path / "model")
    graphs = [onnx.load(tmp_path / "model" / file) for file in ("encoder.onnx", "decoder.onnx")]
    assert {node.op_type for graph in graphs for node in graph.graph.node} <= PORTABLE
    assert sum((tmp_path / "model" / file).stat().st_size for file in ("encoder.onnx", "decoder.onnx")) <= 16e6
    assert (described.preset, described.likelihood, described.image_size) == ("base", "gaussian", 64)
    assert described.sigma**2 == pytest.approx(described.metrics["held_out_squared_error"] / 12288, rel=1e-3)


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 7, "latent_dim": 16},
        {"preset": "base", "epochs": 45, "precision": "bfloat16"},
        {"preset": "base", "flip": False, "seed": 3, "image_size": 32},
        {"flip": True},
    ],
)
def test_the_cards_command_makes_the_same_settings(given):
    """The words of the card, read by the command line's own parser."""
    config = make_config({"data": "faces.zip", **given})
    parsed = vars(build_parser().parse_args(card.command(config, "faces.zip").split()))
    for place in ("verb", "do", "out", "resume", "device", "tensorboard"):
        parsed.pop(place)
    assert make_config(parsed) == config
