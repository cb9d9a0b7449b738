from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from vae_runtime import VAE, ModelConfig, ModelFileError
from vae_runtime.config import VARIANTS, graph_files
from vae_train.__main__ import main
from vae_train.config import TrainConfig
from vae_train.data.faces import load_faces
from vae_train.engine.train import train
from vae_train.errors import UsageError
from vae_train.export import quantize as variants
from vae_train.export.export import export
from vae_train.export.quantize import Cost, add_variants, to_fp16, to_int8

PORTABLE = {"Conv", "ConvTranspose", "LeakyRelu", "Add", "Gemm", "Reshape", "Sigmoid", "Flatten"}
MORE = {"fp16": {"Cast"}, "int8": {"QuantizeLinear", "DequantizeLinear"}}
SECONDS = 0.01


@pytest.fixture(scope="module")
def run(faces_zip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(data=str(faces_zip), preset="base", image_size=32, epochs=1, batch_size=50, latent_dim=16)
    train(config, folder, torch.device("cpu"))
    return folder


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    export(run, folder)
    return folder


@pytest.fixture(scope="module")
def faces(faces_zip, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANIME_VAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_faces(str(faces_zip), 32)


@pytest.fixture(scope="module")
def made(plain, faces, tmp_path_factory):
    """An export with both variants, and their costs; not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "model"
    shutil.copytree(plain, folder)
    return folder, add_variants(folder, faces, VARIANTS, SECONDS)


def pixels_of(faces):
    return np.ascontiguousarray(faces.pixels[faces.held_out()].transpose(0, 2, 3, 1))


@pytest.mark.slow
def test_the_costs_are_those_that_a_user_meets(made, faces):
    """Sizes of the files, and PSNR by another way: through VAE.encode and VAE.decode, on 8-bit pictures."""
    folder, costs = made
    pixels = pixels_of(faces)
    pictures = {}
    for variant in (None, *VARIANTS):
        with VAE.load(folder, variant=variant, device="cpu") as vae:
            pictures[variant] = vae.reconstruct(pixels) / 255

    def psnr(some, others):
        return (-10 * np.log10(((some - others) ** 2).mean((1, 2, 3)))).mean()

    for cost in costs:
        sizes = [sum((folder / file).stat().st_size for file in graph_files(name)) for name in (cost.variant, None)]
        assert (cost.size, cost.share) == (sizes[0], sizes[0] / sizes[1])
        assert cost.psnr == pytest.approx(psnr(pictures[cost.variant], pixels / 255), abs=0.02)
        assert cost.loss == pytest.approx(psnr(pictures[None], pixels / 255) - cost.psnr, abs=0.02)
        assert min(cost.speed.values()) > 0
        assert cost.speed.keys() == {"encode 1", "decode 1", "encode 16", "decode 16"}
    assert [cost.variant for cost in costs] == ["fp16", "int8"]


@pytest.mark.slow
def test_the_graph_contract_of_variants(made):
    folder, _ = made
    for variant in VARIANTS:
        for file, original in zip(graph_files(variant), graph_files(), strict=True):
            graph, wanted = onnx.load(folder / file), onnx.load(folder / original)
            onnx.checker.check_model(graph, full_check=True)
            assert {node.op_type for node in graph.graph.node} <= PORTABLE | MORE[variant]
            for kind in ("input", "output"):
                assert getattr(graph.graph, kind) == getattr(wanted.graph, kind)
            notes = [{entry.key: entry.value for entry in each.metadata_props} for each in (graph, wanted)]
            assert notes[0] == notes[1]
            assert (graph.opset_import, graph.ir_version) == (wanted.opset_import, wanted.ir_version)
            assert not any(node.doc_string or node.metadata_props for node in graph.graph.node)


@pytest.mark.slow
def test_fp16_rounds_each_weight(made):
    folder, _ = made
    for file, original in zip(graph_files("fp16"), graph_files(), strict=True):
        half, full = (
            {item.name: item for item in onnx.load(folder / name).graph.initializer} for name in (file, original)
        )
        for name, tensor in full.items():
            wanted = numpy_helper.to_array(tensor)
            if tensor.data_type == TensorProto.FLOAT:
                wanted = wanted.astype(np.float16)
            # The converter keeps the smallest number of float16 where rounding would give zero.
            np.testing.assert_allclose(numpy_helper.to_array(half[name]), wanted, rtol=0, atol=2**-24)


@pytest.mark.slow
def test_int8_holds_each_weight_to_half_a_step_of_its_channel_in_7_bits(made):
    folder, _ = made
    seen = 0
    for file, original in zip(graph_files("int8"), graph_files(), strict=True):
        graph = onnx.load(folder / file).graph
        tensors = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        full = {item.name: numpy_helper.to_array(item) for item in onnx.load(folder / original).graph.initializer}
        for node in graph.node:
            name = node.input[0].removesuffix("_quantized")
            if node.op_type != "DequantizeLinear" or name not in full or full[name].ndim < 2:
                continue
            values, steps = tensors[node.input[0]], tensors[node.input[1]]
            axis = next(item.i for item in node.attribute if item.name == "axis")
            assert values.dtype == np.int8
            assert np.abs(values.astype(int)).max() <= 64
            assert steps.shape == (full[name].shape[axis],)
            steps = steps.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
            assert (np.abs(values * steps - full[name]) <= steps * 0.5001).all()
            seen += 1
    assert seen > 10


@pytest.mark.slow
def test_the_same_graphs_give_the_same_bytes(made, plain, faces, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(plain, again)
    add_variants(again, faces, VARIANTS, SECONDS)
    for variant in VARIANTS:
        for file in graph_files(variant):
            assert (again / file).read_bytes() == (made[0] / file).read_bytes()
    assert (again / "config.json").read_bytes() == (made[0] / "config.json").read_bytes()


@pytest.mark.slow
def test_the_export_makes_the_same_and_names_the_cost_in_the_card(run, made, faces, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(variants, "BATCHES", (1,))
    folder = tmp_path / "exported"
    config = export(run, folder, faces=faces, variants=("int8",))
    assert ModelConfig.load(folder) == config
    assert config.files.keys() >= set(graph_files("int8"))
    assert "encoder.fp16.onnx" not in config.files
    for file in graph_files("int8"):
        assert (folder / file).read_bytes() == (made[0] / file).read_bytes()
    card = (folder / "README.md").read_text()
    assert card.count("## Precision variants") == 1
    assert "| int8 | " in card
    assert "| int8 | " in capsys.readouterr().out


@pytest.mark.slow
def test_variants_can_be_dropped_again(made, plain, faces, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(made[0], folder)
    assert add_variants(folder, faces, (), SECONDS) == []
    for path in plain.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert len(list(folder.iterdir())) == len(list(plain.iterdir()))


@pytest.mark.slow
def test_a_variant_that_misses_its_limits_is_left_out(plain, faces, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    monkeypatch.setitem(variants.LIMITS, "int8", variants.Limits(size=0.1, loss=-1, agreement=99))
    costs = add_variants(folder, faces, VARIANTS, SECONDS)
    assert [cost.variant for cost in costs] == ["fp16"]
    assert not any((folder / file).exists() for file in graph_files("int8"))
    assert "encoder.int8.onnx" not in ModelConfig.load(folder).files
    assert "int8 | " not in (folder / "README.md").read_text()
    warning = capsys.readouterr().err
    assert "warning: int8 is left out: " in warning
    assert all(text in warning for text in ("at most 10% allowed", "at most -1 allowed", "99 needed"))


def test_limits_are_limits():
    cost = Cost("fp16", size=1, share=0.5, psnr=20, loss=0.01, agreement=60, speed={"encode 1": 1.0})
    assert cost.misses() == ""
    for wrong in ({"share": 0.52}, {"loss": 0.011}, {"agreement": 59.9}, {"loss": float("nan")}):
        assert dataclasses.replace(cost, **wrong).misses()


def test_other_pictures_are_refused_and_nothing_is_changed(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    other = load_faces("avatars", 32, 20)
    with pytest.raises(UsageError, match="not the pictures that blobs-32 was trained on"):
        add_variants(folder, other, ("fp16",), SECONDS)
    assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}


def test_a_damaged_model_is_named_by_its_own_path(exported, faces, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    (folder / "encoder.onnx").write_bytes(b"")
    with pytest.raises(ModelFileError, match=re.escape(str(folder / "encoder.onnx"))):
        add_variants(folder, faces, ("fp16",), SECONDS)


def test_an_export_without_pictures_has_no_variants(finished, tmp_path):
    with pytest.raises(UsageError, match="--variants: needs the pictures of the run"):
        export(finished, tmp_path / "out", variants=("fp16",))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_verb(plain, faces_zip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(variants, "BATCHES", (1,))
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    assert main(["variants", str(folder), "--data", str(faces_zip), "--variants", "fp16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| fp16 | ")
    assert VAE.load(folder, variant="fp16", device="cpu").variant == "fp16"
    for wrong in (["missing", "--data", str(faces_zip)], [str(folder), "--data", "missing"], [str(folder)]):
        with pytest.raises(SystemExit) as stop:
            main(["variants", *wrong])
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["export", str(folder), "--variants", "int4"])
    assert stop.value.code == 2
    assert "got 'int4', expected some of fp16,int8" in capsys.readouterr().err


def test_transposed_convolutions_keep_their_answers(rng):
    """The scales of a transposed convolution lie along its second axis, those of a convolution along the first."""
    weight = (rng.normal(size=(4, 6, 2, 2)) * np.arange(1, 7)[:, None, None]).astype(np.float32)
    node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])
    ports = [
        [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])]
        for name, shape in (("x", (4, 5, 5)), ("y", (6, 10, 10)))
    ]
    graph = onnx.helper.make_graph([node], "up", *ports, [numpy_helper.from_array(weight, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    x = rng.normal(size=(8, 4, 5, 5)).astype(np.float32)
    exact = np.einsum("ncij,cokl->noikjl", x, weight).reshape(8, 6, 10, 10)
    for made, most in ((to_fp16(model), 2e-3), (to_int8(model, x), 4e-2)):
        found = onnx_run(made, x)
        assert np.abs(found - exact).max() <= most * np.abs(exact).max()
    axes = [item.i for each in made.graph.node for item in each.attribute if item.name == "axis"]
    assert 1 in axes


def onnx_run(model, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_the_chapter_of_the_card():
    cost = Cost("fp16", size=1, share=0.5, psnr=20, loss=-0.00001, agreement=60, speed={"encode 1": 1.0})
    text = variants.card_section([cost], 7)
    assert "On 7\nheld-out pictures" in text
    assert "| fp16 | 0.00 | 50% | 20.00 | 0.0000 | 60.0 | 1.00 |" in text
