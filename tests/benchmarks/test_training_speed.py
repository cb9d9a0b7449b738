from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import training
from benchmarks.training import Ceiling, Row, as_table, ceiling, engine_loop, plain_loop, resident_loop
from vae_train.config import TrainConfig

CONFIG = TrainConfig(batch_size=8, precision="float32")


@pytest.fixture
def pixels(rng, tmp_path):
    faces = rng.integers(0, 256, (24, 3, 32, 32), np.uint8)
    for index, face in enumerate(faces):
        Image.fromarray(face.transpose(1, 2, 0)).save(tmp_path / f"{index}.jpg")
    return faces


@pytest.mark.slow
@pytest.mark.parametrize("loop", [plain_loop, resident_loop, engine_loop])
def test_each_loop_counts_its_images(loop, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_WARM_UP", 0.0)
    row = loop(CONFIG, pixels, str(tmp_path), "cpu", 0.2)
    assert row.precision == "float32"
    assert row.images_per_second > 0
    assert row.peak_megabytes > 50


@pytest.mark.slow
def test_the_operations_are_those_of_the_layers():
    """Twice the multiplications of each layer, forward; about three times that with the backward pass."""
    forward = 0.0
    for inputs, outputs, side in ((3, 16, 16), (16, 32, 8), (32, 64, 4), (64, 128, 2), (128, 256, 1)):
        forward += 2 * 9 * inputs * outputs * side**2
    for inputs, outputs, side in ((256, 128, 1), (128, 64, 2), (64, 32, 4), (32, 16, 8), (16, 16, 16)):
        forward += 2 * 9 * inputs * outputs * side**2  # each input place is multiplied with the whole kernel
    forward += 2 * 9 * 16 * 3 * 32**2 + 3 * 2 * 256 * 128
    found = ceiling(TrainConfig(), torch.device("cpu"))
    first_layer = 2 * 9 * 3 * 16 * 16**2  # needs no gradient of its input
    assert found.flop_per_image == pytest.approx(3 * forward - first_layer, rel=0.01)
    assert min(found.flop_per_second.values()) > 1e8
    assert found.bytes_per_second > 1e8
    # At least the pictures of all layers, written once forward and read once backward.
    assert found.bytes_per_image > 2 * 4 * (3 * 32**2 + 16 * 16**2 + 3 * 16 * 16**2 + 3 * 16 * 32**2)


def test_the_table_has_ratios_to_the_plain_loop():
    rows = [Row("plain loop", "float32", 100.0, 10.0), Row("ours", "bfloat16", 250.0, 12.0)]
    limit = Ceiling(2e6, 1e7, {"float32": 1e9, "bfloat16": 2e9}, 1e10)
    table = as_table(rows, limit, {"preset": "classic", "on": "CPU"}).splitlines()
    assert table[0] == "preset classic, on CPU"
    assert table[-2] == "| plain loop, float32 | 100 | 1.00 | 10 | 20.0% | 10.0% |"
    assert table[-1] == "| ours, bfloat16 | 250 | 2.50 | 12 | 25.0% | 25.0% |"
