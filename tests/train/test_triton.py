"""The model repository, read by the protobuf messages of NVIDIA's own client."""

from __future__ import annotations

import warnings

import pytest

from vae_runtime import ModelConfig
from vae_runtime.errors import ModelFileError
from vae_train.__main__ import main
from vae_train.errors import UsageError
from vae_train.export.triton import write_repository


def parse(path):
    """A config.pbtxt as the message ModelConfig of model_config.proto; a field that it does not know is an error."""
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2, text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def test_the_configurations_are_what_triton_reads(tiny, tmp_path):
    encoder, decoder = write_repository(tiny.folder, tmp_path / "models")
    config = ModelConfig.load(tiny.folder)
    picture, code = [3, config.image_size, config.image_size], [config.latent_dim]
    for folder, name, inputs, outputs in (
        (encoder, "tiny_encoder", {"image": picture}, {"mu": code, "logvar": code}),
        (decoder, "tiny_decoder", {"z": code}, {"image": picture}),
    ):
        messages, found = parse(folder / "config.pbtxt")
        assert found.name == folder.name == name
        assert found.platform == "onnxruntime_onnx"
        assert found.max_batch_size == 64
        assert {port.name: list(port.dims) for port in found.input} == inputs
        assert {port.name: list(port.dims) for port in found.output} == outputs
        assert {port.data_type for port in (*found.input, *found.output)} == {messages.TYPE_FP32}
        assert list(found.dynamic_batching.preferred_batch_size) == [8, 32, 64]
        assert found.dynamic_batching.max_queue_delay_microseconds == 1000
        assert [(each.count, each.kind) for each in found.instance_group] == [
            (1, messages.ModelInstanceGroup.KIND_AUTO)
        ]


def test_the_layout_of_the_repository(tiny, tmp_path):
    write_repository(tiny.folder, tmp_path / "models")
    files = {path.relative_to(tmp_path / "models").as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert files.keys() == {
        f"tiny_{part}/{file}" for part in ("encoder", "decoder") for file in ("config.pbtxt", "1/model.onnx")
    }
    for part in ("encoder", "decoder"):
        assert files[f"tiny_{part}/1/model.onnx"].read_bytes() == (tiny.folder / f"{part}.onnx").read_bytes()


def test_a_model_that_is_there_is_not_replaced(tiny, tmp_path):
    (tmp_path / "another").mkdir()
    (tmp_path / "tiny_decoder").mkdir()
    with pytest.raises(UsageError, match="tiny_decoder"):
        write_repository(tiny.folder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"another", "tiny_decoder"}


def test_what_cannot_be_served_is_refused(tiny, tmp_path):
    with pytest.raises(UsageError, match="int8"):
        write_repository(tiny.folder, tmp_path / "models", "int8")
    with pytest.raises(ModelFileError):
        write_repository(tmp_path / "nothing", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_verb(tiny, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["triton", str(tiny.folder), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"tiny_{part}") for part in ("encoder", "decoder")]
    with pytest.raises(SystemExit) as stop:
        main(["triton", str(tmp_path / "missing"), "--out", str(tmp_path)])
    assert stop.value.code == 2
