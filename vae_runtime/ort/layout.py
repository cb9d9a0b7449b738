"""A graph made faster for the CPU, and otherwise the same: the last convolution of a decoder, written the other way.

ONNX Runtime computes a convolution to 3 colours as a matrix product with 3 rows, which leaves most of its kernel idle,
or in blocks of 16 channels, of which 13 are empty: either takes a third of the classic decoder's time. A convolution
with stride 1 and the padding that keeps the size is also a transposed convolution with the kernel turned by 180 degrees
(Dumoulin & Visin, "A guide to convolution arithmetic", 2016, section 4), whose matrix product has 3 * 9 rows. The graph
is changed in memory, after its digest was checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vae_runtime.ort.verify import spans

FEW = 4
"""A convolution to at most this many channels is turned."""

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5  # field numbers of onnx.proto
_NODE_INPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TEXT, _ATTRIBUTE_INTS = 1, 3, 4, 8
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_FLOAT = 1


def turn_last_convolution(model: bytes) -> bytes:
    """The same graph with its convolutions to few channels as transposed ones; the same bytes if there are none."""
    whole = memoryview(model)
    graph = next(bytes(value) for number, value, _ in spans(whole) if number == _GRAPH and not isinstance(value, int))
    parts = list(spans(memoryview(graph)))
    weights = {}
    uses: Counter[str] = Counter()
    for number, value, _ in parts:
        if number == _INITIALIZER and not isinstance(value, int):
            weights[_text(value, _TENSOR_NAME)] = value
        if number == _NODE and not isinstance(value, int):
            uses.update(_texts(value, _NODE_INPUT))
    turned = {}
    for number, value, _ in parts:
        if number == _NODE and not isinstance(value, int) and _text(value, _NODE_OPERATOR) == "Conv":
            name = _texts(value, _NODE_INPUT)[1]
            kernel = _kernel(weights.get(name))
            if uses[name] == 1 and kernel is not None and _keeps_the_size(value, kernel.shape[2:]):
                turned[name] = kernel
    if not turned:
        return model
    return b"".join(
        _field(_GRAPH, _turn(parts, turned)) if number == _GRAPH else raw for number, _, raw in spans(whole)
    )


def _turn(parts: Iterable[tuple[int, int | memoryview, memoryview]], turned: dict[str, NDArray[np.float32]]) -> bytes:
    done = []
    for number, value, raw in parts:
        if isinstance(value, int):
            done.append(bytes(raw))
        elif number == _NODE and turned.keys() & set(_texts(value, _NODE_INPUT)):
            done.append(_field(_NODE, _replace(value, _NODE_OPERATOR, b"ConvTranspose")))
        elif number == _INITIALIZER and (name := _text(value, _TENSOR_NAME)) in turned:
            # (out, in, h, w) becomes (in, out, h, w), turned by 180 degrees
            kernel = np.ascontiguousarray(turned[name].transpose(1, 0, 2, 3)[..., ::-1, ::-1], "<f4")
            done.append(_field(_INITIALIZER, _tensor(name, kernel)))
        else:
            done.append(bytes(raw))
    return b"".join(done)


def _kernel(tensor: memoryview | None) -> NDArray[np.float32] | None:
    """The weights (out, in, h, w) of a convolution to few channels; None for any other tensor."""
    if tensor is None:
        return None
    fields = list(spans(tensor))
    shape = [value for number, value, _ in fields if number == _TENSOR_DIMS and isinstance(value, int)]
    kind = [value for number, value, _ in fields if number == _TENSOR_TYPE]
    raw = [value for number, value, _ in fields if number == _TENSOR_RAW and not isinstance(value, int)]
    if len(shape) != 4 or not 1 <= shape[0] <= FEW or kind != [_FLOAT] or len(raw) != 1:
        return None
    values = np.frombuffer(raw[0], "<f4") if len(raw[0]) % 4 == 0 else np.empty(0, np.float32)
    return values.reshape(shape) if values.size == np.prod(shape, dtype=object) else None


def _keeps_the_size(node: memoryview, side: tuple[int, ...]) -> bool:
    """Whether a convolution has stride 1, one group, no dilation, and half of an odd kernel as its padding."""
    found = {}
    for number, attribute, _ in spans(node):
        if number == _NODE_ATTRIBUTE and not isinstance(attribute, int):
            numbers = [v for n, v, _ in spans(attribute) if n in (_ATTRIBUTE_INT, _ATTRIBUTE_INTS)]
            words = [bytes(v) for n, v, _ in spans(attribute) if n == _ATTRIBUTE_TEXT and not isinstance(v, int)]
            found[_text(attribute, _ATTRIBUTE_NAME)] = numbers or words
    half = [length // 2 for length in side]
    wanted = {"strides": [1, 1], "dilations": [1, 1], "group": [1], "pads": half * 2, "kernel_shape": list(side)}
    wanted["auto_pad"] = [b"NOTSET"]  # type: ignore[list-item]
    odd = all(length % 2 == 1 for length in side)
    return odd and "pads" in found and all(found[key] == wanted.get(key) for key in found)


def _replace(message: memoryview, field: int, content: bytes) -> bytes:
    return b"".join(_field(field, content) if number == field else raw for number, _, raw in spans(message))


def _tensor(name: str, values: NDArray[np.float32]) -> bytes:
    dims = b"".join(_varint(_TENSOR_DIMS << 3) + _varint(length) for length in values.shape)
    kind = _varint(_TENSOR_TYPE << 3) + _varint(_FLOAT)
    return dims + kind + _field(_TENSOR_NAME, name.encode()) + _field(_TENSOR_RAW, values.tobytes())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _texts(message: memoryview, field: int) -> list[str]:
    return [
        bytes(value).decode() for number, value, _ in spans(message) if number == field and not isinstance(value, int)
    ]


def _text(message: memoryview, field: int) -> str:
    return (_texts(message, field) or [""])[0]
