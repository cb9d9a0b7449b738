"""The bytes of an ONNX file, looked at before ONNX Runtime opens it: accidents, operators, external data.

ONNX is protobuf, and what must be known is near its surface, so a reader of the wire format of thirty lines is enough
(https://protobuf.dev/programming-guides/encoding). The field numbers are those of onnx.proto.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vae_runtime.errors import ModelFileError

OPERATORS = frozenset(
    (
        "Abs Add AveragePool BatchNormalization Cast Clip Concat Constant Conv ConvTranspose DepthToSpace "
        "DequantizeLinear Div Elu Erf Exp Flatten Gather Gelu Gemm GlobalAveragePool GroupNormalization "
        "HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Log MatMul Max MaxPool "
        "Min Mish Mul Neg PRelu Pad Pow QuantizeLinear ReduceMean ReduceSum Relu Reshape Resize Selu Shape Sigmoid "
        "Sign Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze"
    ).split()
)
"""What a graph may be made of: no loop or branch, no randomness, nothing that makes a large tensor out of a small one
by a number in the file (ConstantOfShape, Expand, Tile, Range), no operator of another domain."""
MAX_BYTES = 2**31 - 1
"""Largest graph: protobuf's own limit."""

_Value: TypeAlias = int | memoryview
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 5, 6, 11
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2


@dataclass(frozen=True)
class Outline:
    """What a graph is made of."""

    operators: Counter[str]
    """How often it uses each operator."""
    opset: int
    """Version of the standard operators that it is written for."""


def read_verified(path: Path, sha256: str) -> bytes:
    """The bytes of a graph whose digest is `sha256`; ModelFileError names the accident when it is another.

    A missing or empty file, a git-lfs pointer, a web page and a file that ends too early are called what they are.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); export or download the model again"
        ) from error
    if data.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{path}: a git-lfs pointer and not the file itself; run git lfs pull")
    if not data or data.lstrip()[:1] == b"<":
        raise ModelFileError(
            f"{path}: {'empty' if not data else 'a web page'}, expected an exported file; download it again"
        )
    if hashlib.sha256(data).hexdigest() != sha256:
        what = "truncated" if _ends_early(data, path) else "damaged or of another export"
        raise ModelFileError(f"{path}: {what}, its SHA-256 is not the one in config.json; export or download it again")
    return data


def _ends_early(data: bytes, path: Path) -> bool:
    if path.suffix != ".onnx":
        return False
    try:
        return sum(1 for _ in _fields(memoryview(data))) == 0
    except ValueError:
        return True


def outline(data: bytes, name: str) -> Outline:
    """The operators and the opset of a graph. ModelFileError unless it is self-contained and made of `OPERATORS`."""
    try:
        return _outline(memoryview(data), name)
    except ValueError as error:
        raise ModelFileError(f"{name}: not an ONNX graph ({error}); export or download it again") from error


def _outline(model: memoryview, name: str) -> Outline:
    graphs, opset = [], 0
    for number, value in _fields(model):
        if number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
            _refuse(name, "training steps or functions of its own", "a plain graph")
        if number == _MODEL_GRAPH:
            graphs.append(_part(value))
        if number == _MODEL_OPSETS:
            entry = dict(_fields(_part(value)))
            if bytes(_part(entry.get(_OPSET_DOMAIN, memoryview(b"")))) in (b"", b"ai.onnx"):
                opset = _number(entry.get(_OPSET_VERSION, 0))
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs in it")
    operators: Counter[str] = Counter()
    for number, value in _fields(graphs[0]):
        if number == _GRAPH_NODE:
            operators[_operator(_part(value), name)] += 1
        if number == _GRAPH_INITIALIZER:
            _check_tensor(_part(value), name)
        if number == _GRAPH_SPARSE:
            _refuse(name, "sparse weights", "dense ones")
    return Outline(operators, opset)


def _operator(node: memoryview, name: str) -> str:
    kind = domain = ""
    for number, value in _fields(node):
        if number == _NODE_OPERATOR:
            kind = bytes(_part(value)).decode()
        if number == _NODE_DOMAIN:
            domain = bytes(_part(value)).decode()
        if number == _NODE_ATTRIBUTE:
            for inner, part in _fields(_part(value)):
                if inner in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    _refuse(name, "a graph within the graph (a loop or a branch)", "a plain chain of operators")
                if inner == _ATTRIBUTE_TENSOR:
                    _check_tensor(_part(part), name)
    if domain not in ("", "ai.onnx") or kind not in OPERATORS:
        shown = f"{domain}.{kind}" if domain else kind
        _refuse(name, f"the operator {shown[:60]!r}", "only the operators that a model of ours is made of")
    return kind


def _check_tensor(tensor: memoryview, name: str) -> None:
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
            _refuse(name, "weights in another file", "a self-contained graph")


def _refuse(name: str, got: str, expected: str) -> None:
    raise ModelFileError(f"{name}: holds {got}, expected {expected}; export the model again with this project")


def _fields(data: memoryview) -> Iterator[tuple[int, _Value]]:
    return ((number, value) for number, value, _ in spans(data))


def spans(data: memoryview) -> Iterator[tuple[int, _Value, memoryview]]:
    """(number, value, whole bytes) of each field of one message; ValueError where it is no protobuf, or ends early."""
    position, end = 0, len(data)
    while position < end:
        start = position
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value, data[start:position]
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > end:
            raise ValueError("it ends in the middle of a field")
        position += length
        yield tag >> 3, data[position - length : position], data[start:position]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends in the middle of a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number of more than 64 bits")


def _part(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _number(value: _Value) -> int:
    if not isinstance(value, int):
        raise ValueError("a message where a number belongs")
    return value
