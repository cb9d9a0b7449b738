"""Reader of the protobuf wire format, enough to inspect an ONNX file without the package onnx.

See https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

Value: TypeAlias = int | memoryview


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field of one message; ValueError if it is not protobuf or ends early."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        if tag >= 2**32:  # others read its low 32 bits, and with them another field
            raise ValueError("a tag of more than 32 bits")
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > end:
            raise ValueError("it ends in the middle of a field")
        position += length
        yield tag >> 3, message[position - length : position]


def as_message(value: Value) -> memoryview:
    """The value of a length-delimited field; ValueError for a number."""
    if isinstance(value, int):
        raise ValueError("a number in place of a message")
    return value


def as_number(value: Value) -> int:
    """The value of a varint field; ValueError for a message."""
    if not isinstance(value, int):
        raise ValueError("a message in place of a number")
    return value


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
