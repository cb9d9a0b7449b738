"""Verify the bytes of a model file before ONNX Runtime opens them: digest, operators, external data.

The field numbers are those of onnx.proto.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vae_runtime.errors import ModelFileError
from vae_runtime.ort.protobuf import as_message, as_number, fields

OPERATORS = frozenset(
    (
        "Abs Add AveragePool BatchNormalization Cast Clip Concat Constant Conv ConvTranspose DepthToSpace "
        "DequantizeLinear Div Elu Erf Exp Flatten Gather Gelu Gemm GlobalAveragePool GroupNormalization "
        "HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Log MatMul Max MaxPool "
        "Min Mish Mul Neg PRelu Pad Pow QuantizeLinear ReduceMean ReduceSum Relu Reshape Resize Selu Shape Sigmoid "
        "Sign Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze"
    ).split()
)
"""The operators that a graph may use: no loop or branch, no randomness, none that makes a large tensor from a number in
the file (ConstantOfShape, Expand, Tile, Range), none of another domain."""
MAX_BYTES = 2**31 - 1
"""Largest graph, protobuf's own limit."""

_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 5, 6, 11
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2


@dataclass(frozen=True)
class GraphSummary:
    """The operators and the opset of a graph."""

    operators: Counter[str]
    """Number of nodes of each operator."""
    opset: int
    """Version of the standard operators."""


def read_verified(path: Path, sha256: str) -> bytes:
    """The bytes of a file whose digest is `sha256`; ModelFileError otherwise.

    The error tells a missing or empty file, a git-lfs pointer, a web page and a truncated file apart.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); export or download the model again"
        ) from error
    if data.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{path}: a git-lfs pointer, not the file itself; run git lfs pull")
    if not data or data.lstrip()[:1] == b"<":
        raise ModelFileError(
            f"{path}: {'empty' if not data else 'a web page'}, expected an exported file; download it again"
        )
    if hashlib.sha256(data).hexdigest() != sha256:
        what = "truncated" if _is_truncated(data, path) else "damaged or of another export"
        raise ModelFileError(f"{path}: {what}, its SHA-256 is not the one in config.json; export or download it again")
    return data


def _is_truncated(data: bytes, path: Path) -> bool:
    if path.suffix != ".onnx":
        return False
    try:
        return sum(1 for _ in fields(memoryview(data))) == 0
    except ValueError:
        return True


def graph_summary(data: bytes, name: str) -> GraphSummary:
    """Inspect a graph. ModelFileError unless it is self-contained and uses only `OPERATORS`."""
    try:
        return _summarize(memoryview(data), name)
    except ValueError as error:
        raise ModelFileError(f"{name}: not an ONNX graph ({error}); export or download it again") from error


def _summarize(model: memoryview, name: str) -> GraphSummary:
    graphs, opset = [], 0
    for number, value in fields(model):
        if number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
            _refuse(name, "training steps or functions", "a plain graph")
        if number == _MODEL_GRAPH:
            graphs.append(as_message(value))
        if number == _MODEL_OPSETS:
            imported = dict(fields(as_message(value)))
            if bytes(as_message(imported.get(_OPSET_DOMAIN, memoryview(b"")))) in (b"", b"ai.onnx"):
                opset = as_number(imported.get(_OPSET_VERSION, 0))
    if len(graphs) != 1:
        raise ValueError(f"it holds {len(graphs)} graphs, expected 1")
    operators: Counter[str] = Counter()
    for number, value in fields(graphs[0]):
        if number == _GRAPH_NODE:
            operators[_operator(as_message(value), name)] += 1
        if number == _GRAPH_INITIALIZER:
            _check_tensor(as_message(value), name)
        if number == _GRAPH_SPARSE:
            _refuse(name, "sparse weights", "dense weights")
    return GraphSummary(operators, opset)


def _operator(node: memoryview, name: str) -> str:
    kind = domain = ""
    for number, value in fields(node):
        if number == _NODE_OPERATOR:
            kind = bytes(as_message(value)).decode()
        if number == _NODE_DOMAIN:
            domain = bytes(as_message(value)).decode()
        if number == _NODE_ATTRIBUTE:
            for inner, part in fields(as_message(value)):
                if inner in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    _refuse(name, "a subgraph (a loop or a branch)", "a plain sequence of operators")
                if inner == _ATTRIBUTE_TENSOR:
                    _check_tensor(as_message(part), name)
    if domain not in ("", "ai.onnx") or kind not in OPERATORS:
        shown = f"{domain}.{kind}" if domain else kind
        _refuse(name, f"the operator {shown[:60]!r}", "only standard operators of a feed-forward network")
    return kind


def _check_tensor(tensor: memoryview, name: str) -> None:
    for number, value in fields(tensor):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
            _refuse(name, "weights in another file", "a self-contained graph")


def _refuse(name: str, got: str, expected: str) -> None:
    raise ModelFileError(f"{name}: contains {got}, expected {expected}; export the model again")
