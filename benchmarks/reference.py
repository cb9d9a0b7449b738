"""Exact values of a graph: its operators in float64 with plain NumPy, and the arithmetic that they cost.

Every runtime is compared with this (`benchmarks.parity`). Its own rounding error, about 1e-15, is negligible beside
that of float32. Convolutions are sums over the taps of their kernels (Dumoulin & Visin, "A guide to convolution
arithmetic", 2016): slow, short, and independent of how any runtime computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vae_runtime.errors import ModelFileError

Array: TypeAlias = NDArray[Any]
Attributes: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """One operator of a graph."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


@dataclass(frozen=True)
class ParsedGraph:
    """A graph with one input, its nodes in order of execution."""

    input: str
    outputs: tuple[str, ...]
    weights: Mapping[str, Array]
    nodes: tuple[Node, ...]
    opset: int
    ir_version: int


def parse(data: bytes) -> ParsedGraph:
    """Read the bytes of an .onnx file."""
    model = onnx.load_from_string(data)
    graph = model.graph
    return ParsedGraph(
        graph.input[0].name,
        tuple(output.name for output in graph.output),
        {item.name: numpy_helper.to_array(item) for item in graph.initializer},
        tuple(
            Node(
                node.op_type,
                tuple(node.input),
                node.output[0],
                {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute},
            )
            for node in graph.node
        ),
        model.opset_import[0].version,
        model.ir_version,
    )


def evaluate(graph: ParsedGraph, values: Array) -> list[NDArray[np.float64]]:
    """All outputs of `graph` for `values` (n, ...). ModelFileError for an operator that is not in `OPERATORS`."""
    tensors = _tensors(graph, values)
    return [tensors[name] for name in graph.outputs]


def flop(graph: ParsedGraph, shape: tuple[int, ...]) -> int:
    """Floating-point operations for one input of `shape`: two per multiply-add, nothing else counted."""
    tensors = _tensors(graph, np.zeros((1, *shape)))
    return sum(2 * _multiply_adds(node, tensors) for node in graph.nodes)


def _tensors(graph: ParsedGraph, values: Array) -> dict[str, Array]:
    """Every tensor of the graph by its name."""
    tensors: dict[str, Array] = {
        name: weight.astype(np.float64) if weight.dtype.kind == "f" else weight
        for name, weight in graph.weights.items()
    }
    tensors[graph.input] = values.astype(np.float64)
    for node in graph.nodes:
        if node.operator not in OPERATORS:
            raise ModelFileError(f"operator {node.operator}: the reference knows only {', '.join(OPERATORS)}")
        inputs = (tensors[name] for name in node.inputs)
        tensors[node.output] = OPERATORS[node.operator](node.attributes, *inputs)
    return tensors


def _multiply_adds(node: Node, tensors: Mapping[str, Array]) -> int:
    """Multiply-adds of one node for one picture."""
    if node.operator not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    weight = tensors[node.inputs[1]]
    if node.operator in ("Gemm", "MatMul"):
        return weight.size
    # Each place of a convolution's output, and of a transposed one's input, meets the whole kernel once.
    places = tensors[node.output if node.operator == "Conv" else node.inputs[0]].shape[2:]
    return weight.size * prod(places)


def _conv(attributes: Attributes, x: Array, weight: Array, bias: Array | None = None) -> Array:
    (stride_y, stride_x), (top, left, bottom, right) = _strides_and_pads(attributes)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = weight.shape[2:]
    rows, columns = (padded.shape[2] - height) // stride_y + 1, (padded.shape[3] - width) // stride_x + 1
    total = np.zeros((len(weight), len(x), rows, columns))
    for i, j in np.ndindex(height, width):
        seen = padded[
            :, :, i : i + stride_y * (rows - 1) + 1 : stride_y, j : j + stride_x * (columns - 1) + 1 : stride_x
        ]
        total += np.tensordot(weight[:, :, i, j], seen, axes=(1, 1))
    return _add_bias(total.swapaxes(0, 1), bias)


def _conv_transpose(attributes: Attributes, x: Array, weight: Array, bias: Array | None = None) -> Array:
    (stride_y, stride_x), (top, left, bottom, right) = _strides_and_pads(attributes)
    extra_y, extra_x = attributes.get("output_padding", (0, 0))
    (rows, columns), (height, width) = x.shape[2:], weight.shape[2:]
    side_y, side_x = stride_y * (rows - 1) + height + extra_y, stride_x * (columns - 1) + width + extra_x
    total = np.zeros((weight.shape[1], len(x), side_y, side_x))
    for i, j in np.ndindex(height, width):
        target = total[
            :, :, i : i + stride_y * (rows - 1) + 1 : stride_y, j : j + stride_x * (columns - 1) + 1 : stride_x
        ]
        target += np.tensordot(weight[:, :, i, j], x, axes=(0, 1))
    kept = total[:, :, top : side_y - bottom, left : side_x - right]
    return _add_bias(kept.swapaxes(0, 1), bias)


def _strides_and_pads(attributes: Attributes) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Of a convolution without groups, dilation or automatic padding; ModelFileError for any other."""
    defaults = {"group": 1, "dilations": [1, 1], "auto_pad": b"NOTSET", "output_shape": []}
    for name, default in defaults.items():
        if attributes.get(name, default) != default:
            raise ModelFileError(f"convolution with {name} {attributes[name]}: not supported by the reference")
    return tuple(attributes.get("strides", (1, 1))), tuple(attributes.get("pads", (0, 0, 0, 0)))


def _add_bias(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias[:, None, None]


def _gemm(attributes: Attributes, a: Array, b: Array, c: Array | float = 0.0) -> Array:
    left = a.T if attributes.get("transA") else a
    right = b.T if attributes.get("transB") else b
    return attributes.get("alpha", 1.0) * (left @ right) + attributes.get("beta", 1.0) * c  # type: ignore[no-any-return]


def _reshape(attributes: Attributes, x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[axis] if length == 0 else int(length) for axis, length in enumerate(shape)])


def _leaky_relu(attributes: Attributes, x: Array) -> Array:
    return np.where(x >= 0, x, attributes.get("alpha", 0.01) * x)


OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": lambda attributes, a, b: a + b,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Flatten": lambda attributes, x: x.reshape(len(x), -1),
    "Gemm": _gemm,
    "LeakyRelu": _leaky_relu,
    "MatMul": lambda attributes, a, b: a @ b,
    "Mul": lambda attributes, a, b: a * b,
    "Neg": lambda attributes, x: -x,
    "Relu": lambda attributes, x: np.maximum(x, 0),
    "Reshape": _reshape,
    "Sigmoid": lambda attributes, x: np.exp(-np.logaddexp(0, -x)),  # 1 / (1 + exp(-x)) without overflow
}
"""The operators of this project's graphs: name -> function of the attributes and the inputs."""
