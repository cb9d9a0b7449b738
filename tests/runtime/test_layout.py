from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vae_runtime.ort.devices import import_onnxruntime
from vae_runtime.ort.layout import turn_last_convolution
from vae_runtime.ort.verify import outline

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def convolution(rng, channels=3, side=3, bias=True, doubled=False, **attributes) -> bytes:
    settings = {"kernel_shape": [side, side], "pads": [side // 2] * 4} | attributes
    weight = rng.normal(size=(channels, 5 // settings.get("group", 1), side, side)).astype(np.float32)
    tensors = [onnx.numpy_helper.from_array(weight, "w")]
    if bias:
        tensors.append(onnx.numpy_helper.from_array(rng.normal(size=channels).astype(np.float32), "b"))
    entries = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [helper.make_node("Conv", entries, ["y"], **settings)]
    if doubled:
        nodes.append(helper.make_node("Conv", entries, ["again"], **settings))
    ports = [helper.make_tensor_value_info(name, FLOAT, ["batch", None, None, None]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"model_id": "kept"})
    return model.SerializeToString()


def run(model: bytes, values: np.ndarray) -> np.ndarray:
    session = import_onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values})[0]


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_to_few_channels_is_turned_and_computes_the_same(rng, side, channels, bias):
    model = convolution(rng, channels, side, bias, strides=[1, 1], dilations=[1, 1], group=1, auto_pad="NOTSET")
    turned = turn_last_convolution(model)
    onnx.checker.check_model(onnx.load_from_string(turned), full_check=True)
    assert outline(turned, "turned").operators == {"ConvTranspose": 1}
    assert onnx.load_from_string(turned).metadata_props == onnx.load_from_string(model).metadata_props
    values = rng.normal(size=(2, 5, 7, 6)).astype(np.float32)
    np.testing.assert_allclose(run(turned, values), run(model, values), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 5},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"pads": [0, 0, 0, 0]},
        {"pads": [1, 1, 1, 0]},
        {"side": 2},
        {"doubled": True},
        {"group": 5, "channels": 5},
        {"auto_pad": "SAME_UPPER", "pads": [0, 0, 0, 0]},
    ],
)
def test_any_other_convolution_stays_as_it_is(rng, options):
    model = convolution(rng, **options)
    assert turn_last_convolution(model) == model


def test_the_classic_decoder_gains_and_stays_the_same(rng):
    folder = Path(__file__).parents[2] / "exported" / "anime-32"
    encoder, decoder = ((folder / name).read_bytes() for name in ("encoder.onnx", "decoder.onnx"))
    assert turn_last_convolution(encoder) == encoder
    turned = turn_last_convolution(decoder)
    assert outline(turned, "turned").operators["ConvTranspose"] == 6
    z = rng.standard_normal((9, 128), np.float32)
    np.testing.assert_allclose(run(turned, z), run(decoder, z), atol=1e-6)
