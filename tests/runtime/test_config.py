from __future__ import annotations

import dataclasses
import json
import os

import pytest
from tiny_model import tiny_config

from vae_runtime.config import CONFIG_FILE, ModelConfig, TrainingData
from vae_runtime.errors import ConfigError, ModelFileError, VAEError


def changed(**changes: object) -> str:
    return json.dumps(tiny_config().to_dict() | changes)


def test_round_trip(tmp_path):
    config = tiny_config()
    config.save(tmp_path)
    assert ModelConfig.load(tmp_path) == config
    assert ModelConfig.from_json(config.to_json()).to_json() == config.to_json()


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().beta = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("key", sorted(tiny_config().to_dict()))
def test_every_key_must_be_there(key):
    fields = tiny_config().to_dict()
    del fields[key]
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format_version": 2}, "format_version"),
        ({"format_version": True}, "format_version"),
        ({"image_size": "32"}, "image_size"),
        ({"image_size": 32.0}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"latent_dim": -1}, "latent_dim"),
        ({"channels": 1}, "channels"),
        ({"value_range": [-1, 1]}, "value_range"),
        ({"value_range": [0, 1, 2]}, "value_range"),
        ({"likelihood": "bernoulli"}, "likelihood"),
        ({"beta": -1}, "beta"),
        ({"beta": None}, "beta"),
        ({"sigma": 0}, "sigma"),
        ({"sigma": 1e-200}, "sigma"),
        ({"sigma": 1e300}, "sigma"),
        ({"model_id": ""}, "model_id"),
        ({"training_data": {"name": "x", "count": 1}}, "sha256"),
        ({"training_data": "faces"}, "training_data"),
        ({"metrics": {"psnr": "high"}}, "metrics.psnr"),
        ({"files": {}}, "files"),
        ({"files": {"encoder.onnx": "0" * 64, "decoder.onnx": "zz"}}, "files.decoder.onnx"),
        ({"files": {"encoder.onnx": "0" * 64, "decoder.onnx": "0" * 64, "../x": "0" * 64}}, "files"),
        ({"prior": "prior.npz"}, "prior.npz"),
        ({"prior": "other.npz"}, "prior"),
        ({"directions": "directions.npz"}, "directions.npz"),
        ({"directions": "directions.npz", "files": None}, "files"),
        ({"directions": "directions.npz", "files": 5}, "files"),
        ({"name": "../../etc"}, "name"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, named):
    with pytest.raises(ConfigError, match=named):
        ModelConfig.from_json(changed(**changes))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "<html></html>",
        "[" * 100_000,
        '{"a": ' * 50_000,
        "\ufeff{}",
        '{"beta": NaN}',
        '{"beta": 1, "beta": 1}',
        '{"image_size": ' + "9" * 5000 + "}",
    ],
)
def test_hostile_texts_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_json(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number):
    with pytest.raises(ConfigError):
        ModelConfig.from_json(changed().replace('"sigma": 0.1', f'"sigma": {number}'))


def test_a_source_whose_name_is_not_utf8_can_be_written(tmp_path):
    data = TrainingData(name=os.fsdecode(b"caf\xe9"), count=1, sha256="0" * 64)
    config = dataclasses.replace(ModelConfig.from_json(changed()), training_data=data)
    config.save(tmp_path)
    assert ModelConfig.load(tmp_path) == config
    assert config.training_data.name.startswith("caf")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=CONFIG_FILE):
        ModelConfig.load(tmp_path)


@pytest.mark.parametrize("data", [b" " * 70_000, b"\xff\xfe\x00", b"{}"])
def test_files_that_do_not_fit_are_named(tmp_path, data):
    (tmp_path / CONFIG_FILE).write_bytes(data)
    with pytest.raises(ConfigError, match=CONFIG_FILE) as caught:
        ModelConfig.load(tmp_path)
    assert isinstance(caught.value, VAEError)
    assert isinstance(caught.value, ValueError)
