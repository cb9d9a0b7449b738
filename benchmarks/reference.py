"""What a graph should answer: its operators in float64, in plain NumPy, and the arithmetic that they cost.

This is what every runtime is compared with (`benchmarks.parity`). In float64 its own rounding, about 1e-15, is nothing
beside that of a runtime in float32, so that no runtime has to be believed. Convolutions are sums over the taps of their
kernels (Dumoulin & Visin, "A guide to convolution arithmetic", 2016): slow, short, and unlike what any runtime does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import ModelFileError, RuntimeMissingError

Array: TypeAlias = NDArray[Any]
Settings: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One operator of a graph."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    settings: Settings
    """Its attributes, by name."""


@dataclass(frozen=True)
class Parsed:
    """A graph as a list of steps."""

    feed: str
    """Name of its only input."""
    exits: tuple[str, ...]
    """Names of its outputs."""
    weights: Mapping[str, Array]
    steps: tuple[Step, ...]
    opset: int
    ir_version: int


def parse(data: bytes) -> Parsed:
    """The graph in the bytes of an .onnx file. RuntimeMissingError without the package onnx."""
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise RuntimeMissingError(
            'onnx is not installed, which reads the graphs here; pip install "onnx>=1.22"'
        ) from error
    model = onnx.load_from_string(data)
    graph = model.graph
    read = onnx.helper.get_attribute_value
    return Parsed(
        graph.input[0].name,
        tuple(port.name for port in graph.output),
        {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer},
        tuple(
            Step(node.op_type, tuple(node.input), node.output[0], {item.name: read(item) for item in node.attribute})
            for node in graph.node
        ),
        model.opset_import[0].version,
        model.ir_version,
    )


def evaluate(graph: Parsed, values: Array) -> list[NDArray[np.float64]]:
    """All outputs of `graph` for `values` (n, ...). ModelFileError for an operator that is not among `OPERATORS`."""
    known = _known(graph, values)
    return [known[name] for name in graph.exits]


def flop(graph: Parsed, shape: tuple[int, ...]) -> int:
    """Floating-point operations for one input of `shape`: two for each product that is added up, and no others."""
    known = _known(graph, np.zeros((1, *shape)))
    return sum(2 * _products(step, known) for step in graph.steps)


def _known(graph: Parsed, values: Array) -> dict[str, Array]:
    """Every tensor of the graph by its name."""
    known: dict[str, Array] = {
        name: weight.astype(np.float64) if weight.dtype.kind == "f" else weight
        for name, weight in graph.weights.items()
    }
    known[graph.feed] = values.astype(np.float64)
    for step in graph.steps:
        if step.operator not in OPERATORS:
            raise ModelFileError(f"{step.operator}: not among the operators of the reference, {', '.join(OPERATORS)}")
        known[step.output] = OPERATORS[step.operator](step.settings, *(known[name] for name in step.inputs))
    return known


def _products(step: Step, known: Mapping[str, Array]) -> int:
    """Products that are added up, for one picture."""
    if step.operator not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    weight = known[step.inputs[1]]
    if step.operator in ("Gemm", "MatMul"):
        return weight.size
    # Each place of a convolution's output, and of a transposed one's input, meets the whole kernel once.
    places = known[step.output if step.operator == "Conv" else step.inputs[0]].shape[2:]
    return weight.size * prod(places)


def _conv(settings: Settings, x: Array, weight: Array, bias: Array | None = None) -> Array:
    (down, right), (top, left, bottom, last) = _plain(settings)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, last)))
    high, wide = weight.shape[2:]
    rows, columns = (padded.shape[2] - high) // down + 1, (padded.shape[3] - wide) // right + 1
    total = np.zeros((len(weight), len(x), rows, columns))
    for i, j in np.ndindex(high, wide):
        seen = padded[:, :, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
        total += np.tensordot(weight[:, :, i, j], seen, axes=(1, 1))
    return _biased(total.swapaxes(0, 1), bias)


def _conv_transpose(settings: Settings, x: Array, weight: Array, bias: Array | None = None) -> Array:
    (down, right), (top, left, bottom, last) = _plain(settings)
    more, wider = settings.get("output_padding", (0, 0))
    (rows, columns), (high, wide) = x.shape[2:], weight.shape[2:]
    total = np.zeros((weight.shape[1], len(x), down * (rows - 1) + high + more, right * (columns - 1) + wide + wider))
    for i, j in np.ndindex(high, wide):
        spread = total[:, :, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
        spread += np.tensordot(weight[:, :, i, j], x, axes=(0, 1))
    kept = total[:, :, top : total.shape[2] - bottom, left : total.shape[3] - last]
    return _biased(kept.swapaxes(0, 1), bias)


def _plain(settings: Settings) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Strides and paddings of a convolution that has no groups, no dilation and no paddings found by itself."""
    odd = {"group": 1, "dilations": [1, 1], "auto_pad": b"NOTSET", "output_shape": []}
    for name, plain in odd.items():
        if settings.get(name, plain) != plain:
            raise ModelFileError(f"a convolution with {name} {settings[name]}: the reference computes plain ones only")
    return tuple(settings.get("strides", (1, 1))), tuple(settings.get("pads", (0, 0, 0, 0)))


def _biased(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias[:, None, None]


def _gemm(settings: Settings, a: Array, b: Array, c: Array | float = 0.0) -> Array:
    left = a.T if settings.get("transA") else a
    right = b.T if settings.get("transB") else b
    return settings.get("alpha", 1.0) * (left @ right) + settings.get("beta", 1.0) * c  # type: ignore[no-any-return]


def _reshape(settings: Settings, x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[axis] if length == 0 else int(length) for axis, length in enumerate(shape)])


def _leaky_relu(settings: Settings, x: Array) -> Array:
    return np.where(x >= 0, x, settings.get("alpha", 0.01) * x)


OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": lambda settings, a, b: a + b,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Flatten": lambda settings, x: x.reshape(len(x), -1),
    "Gemm": _gemm,
    "LeakyRelu": _leaky_relu,
    "MatMul": lambda settings, a, b: a @ b,
    "Mul": lambda settings, a, b: a * b,
    "Neg": lambda settings, x: -x,
    "Relu": lambda settings, x: np.maximum(x, 0),
    "Reshape": _reshape,
    "Sigmoid": lambda settings, x: np.exp(-np.logaddexp(0, -x)),  # 1 / (1 + exp(-x)) that never overflows
}
"""What the graphs of this project are made of."""
