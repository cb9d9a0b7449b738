"""The exact values: operators against torch in float64 where it is there, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.reference import OPERATORS, Node, ParsedGraph, evaluate, flop, parse
from vae_runtime.errors import ModelFileError
from vae_runtime.hub import bundled_model

onnx = pytest.importorskip("onnx")


def one(operator: str, *weights: np.ndarray, **settings: object) -> ParsedGraph:
    names = tuple(f"w{index}" for index in range(len(weights)))
    node = Node(operator, ("x", *names), "y", settings)
    return ParsedGraph("x", ("y",), dict(zip(names, weights, strict=True)), (node,), 20, 10)


@pytest.mark.parametrize("side", [1, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pad", [0, 1])
def test_convolutions_are_those_of_torch(rng, side, stride, pad):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = rng.normal(size=(2, 5, 7, 6))
    weight, turned, bias = rng.normal(size=(4, 5, side, side)), rng.normal(size=(5, 4, side, side)), rng.normal(size=4)
    if pad >= side:
        pytest.skip("torch wants the padding within the kernel here")
    settings = {"strides": [stride] * 2, "pads": [pad] * 4}
    given = [torch.from_numpy(array) for array in (x, weight, turned, bias)]
    expected = functional.conv2d(given[0], given[1], given[3], stride, pad).numpy()
    np.testing.assert_allclose(evaluate(one("Conv", weight, bias, **settings), x)[0], expected, atol=1e-12)
    more = stride - 1
    expected = functional.conv_transpose2d(given[0], given[2], given[3], stride, pad, more).numpy()
    graph = one("ConvTranspose", turned, bias, output_padding=[more] * 2, **settings)
    np.testing.assert_allclose(evaluate(graph, x)[0], expected, atol=1e-12)


def test_the_other_operators(rng):
    x, weight, bias = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), rng.normal(size=5)
    found = evaluate(one("Gemm", weight, bias, transB=1, alpha=2.0), x)[0]
    np.testing.assert_allclose(found, 2 * x @ weight.T + bias, atol=1e-12)
    for operator, expected, settings in (
        ("LeakyRelu", np.where(x > 0, x, 0.2 * x), {"alpha": 0.2}),
        ("Relu", np.maximum(x, 0), {}),
        ("Sigmoid", 1 / (1 + np.exp(-x)), {}),
        ("Neg", -x, {}),
    ):
        np.testing.assert_allclose(evaluate(one(operator, **settings), x)[0], expected, atol=1e-15)
    shape = np.array([0, 2, -1])
    assert evaluate(one("Reshape", shape), x)[0].shape == (3, 2, 2)
    assert evaluate(one("Sigmoid"), np.array([[-1e4, 1e4]]))[0].tolist() == [[0, 1]]


def test_the_arithmetic_is_counted():
    kernel = np.zeros((4, 5, 3, 3))
    assert flop(one("Conv", kernel, strides=[2, 2], pads=[1] * 4), (5, 8, 8)) == 2 * 4 * 4 * (4 * 5 * 9)
    turned = np.zeros((5, 4, 3, 3))
    assert flop(one("ConvTranspose", turned, strides=[2, 2], pads=[1] * 4), (5, 8, 8)) == 2 * 8 * 8 * (4 * 5 * 9)
    assert flop(one("Gemm", np.zeros((7, 6)), transB=1), (6,)) == 2 * 7 * 6


@pytest.mark.parametrize(
    ("operator", "settings", "said"),
    [("Tanh", {}, "Tanh"), ("Conv", {"group": 5}, "group 5"), ("Conv", {"dilations": [2, 2]}, "dilations")],
)
def test_what_it_cannot_compute_is_refused(rng, operator, settings, said):
    with pytest.raises(ModelFileError, match=said):
        evaluate(one(operator, np.zeros((5, 1, 3, 3)), **settings), rng.normal(size=(1, 5, 4, 4)))


def test_the_bundled_graphs_are_read():
    for file in ("encoder.onnx", "decoder.onnx"):
        graph = parse((bundled_model() / file).read_bytes())
        assert {node.operator for node in graph.nodes} <= OPERATORS.keys()
        assert (graph.opset, graph.ir_version) == (20, 10)
