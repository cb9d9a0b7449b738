"""inverse.onnx: the squared error between a decoded code and a target, and its gradient with respect to the code.

vae_runtime minimizes it in `VAE.invert`, `inpaint` and `upscale`, without torch. torch.onnx exports no backward pass,
so it is built here by reverse-mode differentiation of the exported decoder, with one rule per operator. The
vector-Jacobian product of a convolution is the transposed convolution with the same kernel, and vice versa (Dumoulin &
Visin, "A guide to convolution arithmetic", 2016, chapter 4): forward and backward pass share their weights, and the
file has the size of the decoder.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vae_runtime.config import DECODER_FILE, INVERSE_FILE, ModelConfig
from vae_runtime.files import write_atomically
from vae_runtime.ort.verify import read_verified
from vae_train.errors import ExportError

Gradients: TypeAlias = Iterable[tuple[str, str]]
"""Pairs of the name of a node's input and the name of the gradient with respect to it."""


def gradient_graph(decoder: onnx.ModelProto) -> onnx.ModelProto:
    """The gradient graph of a decoder, with the decoder's metadata, opset and IR version.

    decoder: `z` (batch, latent_dim) -> `image` (batch, 3, S, S), of the operators in `RULES`; ExportError for others.
    Inputs of the result: `z`; `image` (batch, 3, S, S) in [0, 1]; `weight` (batch, 1, S, S), a weight per pixel, 0 for
    unknown ones. Outputs: `loss` (batch,), the sum over pixels and channels of weight * (decode(z) - image)^2;
    `gradient` (batch, latent_dim), the gradient of `loss` with respect to `z`. Deterministic, byte for byte.
    """
    graph = onnx.shape_inference.infer_shapes(decoder, strict_mode=True).graph
    (code,), (picture,) = graph.input, graph.output
    forward = [_renamed(node, picture.name, "decoded") for node in graph.node]
    pass_ = BackwardPass(graph, picture.name)
    residual = pass_.add("Sub", "decoded", "image")
    weighted = pass_.add("Mul", "weight", residual)
    squares = pass_.add("Mul", weighted, residual)
    pass_.add("ReduceSum", squares, pass_.constant([1, 2, 3], np.int64), output="loss", keepdims=0)
    seed = pass_.add("Mul", weighted, pass_.constant(2, np.float32))
    gradient = pass_.differentiate(forward, "decoded", seed, code.name)
    pass_.nodes[-1] = _renamed(pass_.nodes[-1], gradient, "gradient")

    batch, channels, height, width = [axis.dim_param or axis.dim_value for axis in picture.type.tensor_type.shape.dim]
    dim = code.type.tensor_type.shape.dim[1].dim_value
    inputs = [
        _value_info(code.name, batch, dim),
        _value_info("image", batch, channels, height, width),
        _value_info("weight", batch, 1, height, width),
    ]
    outputs = [_value_info("loss", batch), _value_info("gradient", batch, dim)]
    tensors = [*graph.initializer, *pass_.constants]
    made = helper.make_graph([*forward, *pass_.nodes], decoder.graph.name, inputs, outputs, tensors)
    model = helper.make_model(made, opset_imports=decoder.opset_import, ir_version=decoder.ir_version)
    model.producer_name = decoder.producer_name
    model.metadata_props.extend(decoder.metadata_props)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_inverse(folder: Path) -> str:
    """Write inverse.onnx for the decoder.onnx in `folder`, and return its SHA-256."""
    data = gradient_graph(onnx.load(folder / DECODER_FILE)).SerializeToString(deterministic=True)
    write_atomically(folder / INVERSE_FILE, data)
    return hashlib.sha256(data).hexdigest()


def add_inverse(folder: Path) -> ModelConfig:
    """Add inverse.onnx to an exported model and to `files` of its config.json; return the new config.

    Other files are unchanged. Raises ModelFileError, ConfigError, or ExportError for an unknown operator.
    """
    config = ModelConfig.load(folder)
    read_verified(folder / DECODER_FILE, config.files[DECODER_FILE])
    files = {**config.files, INVERSE_FILE: write_inverse(folder)}
    changed = dataclasses.replace(config, files=files)
    changed.save(folder)
    return changed


class BackwardPass:
    """Builds the nodes that propagate a gradient from a graph's output back to its inputs."""

    def __init__(self, graph: onnx.GraphProto, output: str) -> None:
        """graph: with inferred shapes. output: the name of its output, which the forward nodes call "decoded"."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self.shapes = {
            ("decoded" if value.name == output else value.name): [
                axis.dim_value for axis in value.type.tensor_type.shape.dim
            ]
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        """Shape of each computed tensor, with 0 for the batch axis."""

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        name = output or f"backward_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, value: float | Sequence[int], kind: type[np.generic]) -> str:
        """The name of a constant; equal constants are added once."""
        tensor = numpy_helper.from_array(np.array(value, kind), f"constant_{np.dtype(kind)}_{value}")
        if tensor not in self.constants:
            self.constants.append(tensor)
        return str(tensor.name)

    def differentiate(self, forward: Sequence[onnx.NodeProto], output: str, seed: str, input_name: str) -> str:
        """The name of the gradient with respect to `input_name`. seed: the gradient with respect to `output`.

        Gradients of a tensor with several consumers are added up.
        """
        found: defaultdict[str, list[str]] = defaultdict(list)
        found[output].append(seed)
        for node in reversed(forward):
            if node.op_type not in RULES:
                raise ExportError(f"{node.op_type}: its gradient is not supported; add a rule to RULES in {__name__}")
            upstream = self._total(found.pop(node.output[0], []))
            for name, gradient in RULES[node.op_type](self, node, upstream):
                found[name].append(gradient)
        return self._total(found[input_name])

    def _total(self, gradients: list[str]) -> str:
        if not gradients:
            raise ExportError("a part of the decoder does not contribute to its image; export the run again")
        total, *others = gradients
        for other in others:
            total = self.add("Add", total, other)
        return total


def _linear(pass_: BackwardPass, node: onnx.NodeProto, upstream: str) -> Gradients:
    """Y = alpha A B + beta C: dA = alpha dY B^T."""
    given = _attributes(node)
    if node.input[1] not in pass_.weights or given.get("transA", 0):
        raise ExportError(f"{node.op_type} {node.output[0]}: expected weights as its second input")
    turned = {"transB": 1 - given.get("transB", 0), "alpha": given.get("alpha", 1.0)}
    yield node.input[0], pass_.add("Gemm", upstream, node.input[1], **turned)


def _convolution(pass_: BackwardPass, node: onnx.NodeProto, upstream: str) -> Gradients:
    """dX = the transposed convolution of dY with the same kernel, padded to the size of X."""
    given = _geometry(node)
    size, kernel = pass_.shapes[node.input[0]][2:], pass_.weights[node.input[1]][2:]
    half = len(size)
    reach = [
        size[axis] + given["pads"][axis] + given["pads"][axis + half] - given["dilations"][axis] * (kernel[axis] - 1)
        for axis in range(half)
    ]
    rest = [(length - 1) % stride for length, stride in zip(reach, given["strides"], strict=True)]
    yield node.input[0], pass_.add("ConvTranspose", upstream, node.input[1], **given, output_padding=rest)


def _transposed_convolution(pass_: BackwardPass, node: onnx.NodeProto, upstream: str) -> Gradients:
    """dX = the convolution of dY with the same kernel."""
    given = _geometry(node)
    yield node.input[0], pass_.add("Conv", upstream, node.input[1], **given)


def _leaky_relu(pass_: BackwardPass, node: onnx.NodeProto, upstream: str) -> Gradients:
    """dX = dY where x > 0, alpha dY elsewhere. Takes the sign of the output, so that x can be fused away."""
    alpha = pass_.constant(_attributes(node).get("alpha", 0.01), np.float32)
    slope = pass_.add("Max", pass_.add("Sign", node.output[0]), alpha)
    yield node.input[0], pass_.add("Mul", upstream, slope)


def _sigmoid(pass_: BackwardPass, node: onnx.NodeProto, upstream: str) -> Gradients:
    """dX = dY y (1 - y)"""
    rest = pass_.add("Sub", pass_.constant(1, np.float32), node.output[0])
    yield node.input[0], pass_.add("Mul", upstream, pass_.add("Mul", node.output[0], rest))


def _sum(pass_: BackwardPass, node: onnx.NodeProto, upstream: str) -> Gradients:
    first, second = node.input
    if pass_.shapes.get(first) != pass_.shapes.get(second):
        raise ExportError(f"Add {node.output[0]}: inputs of different shapes, expected equal ones")
    yield from ((first, upstream), (second, upstream))


def _reshape(pass_: BackwardPass, node: onnx.NodeProto, upstream: str) -> Gradients:
    shape = pass_.constant([-1, *pass_.shapes[node.input[0]][1:]], np.int64)
    yield node.input[0], pass_.add("Reshape", upstream, shape)


RULES: dict[str, Callable[[BackwardPass, onnx.NodeProto, str], Gradients]] = {
    "Add": _sum,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _linear,
    "LeakyRelu": _leaky_relu,
    "MatMul": _linear,
    "Reshape": _reshape,
    "Sigmoid": _sigmoid,
}
"""The vector-Jacobian product of each supported operator, with respect to its input (the weights are constant)."""


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _geometry(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes that a convolution has in common with its transpose."""
    given = _attributes(node)
    if given.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in given:
        raise ExportError(f"{node.op_type} {node.output[0]}: auto_pad or output_shape is set, expected explicit pads")
    default = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "group": 1}
    return {name: given.get(name, value) for name, value in default.items()}


def _renamed(node: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for names in (copy.input, copy.output):
        names[:] = [new if name == old else name for name in names]
    return copy


def _value_info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
