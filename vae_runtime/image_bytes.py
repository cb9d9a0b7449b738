"""Checks and repairs of the bytes of a picture before Pillow decodes it: the scans of a JPEG, the chunks of a PNG."""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

MAX_SCANS = 200
"""Maximum number of scans of a progressive JPEG: about 10 are usual, thousands take minutes to decode."""
MAX_CHUNKS = 100_000
"""Maximum number of chunks of a PNG."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# A marker after entropy-coded data: not a stuffed zero, not a restart marker, not a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOS, _EOI, _TEM = 0xDA, 0xD9, 0x01

_MAX_TEXT = 64 * 1024
_ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # where some programs put the orientation
_GRAY, _RGB = 0, 2


def count_scans(data: bytes) -> int:
    """The scans of a JPEG up to its end marker; thumbnails in its header and data behind its end do not count.

    Stops at `MAX_SCANS` + 1.
    """
    scans, position = 0, 2
    while scans <= MAX_SCANS and (match := _JPEG_MARKER.search(data, position)):
        marker, position = data[match.end() - 1], match.end()
        if marker == _EOI:
            break
        scans += marker == _SOS
        if marker != _TEM:
            position += int.from_bytes(data[position : position + 2], "big")
    return scans


class Png(NamedTuple):
    """A PNG reduced to its pixels and its orientation."""

    data: bytes
    transparent: tuple[int, int, int] | None
    """The transparent color of an RGB picture of 16 bits, which Pillow cannot apply."""


def clean_png(data: bytes) -> Png:
    """Check the chunks of a PNG and keep those that matter: text, color profiles and animations are dropped unread.

    A missing end is added. A transparent gray of less than 8 bits is rescaled as Pillow rescales the pixels. Raises
    ValueError for a truncated or damaged chunk that matters.
    """
    parts, transparent = [PNG_SIGNATURE], None
    depth = color = -1
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, position) if position + 8 <= len(data) else (0, b"IEND")
        body, end = data[position + 8 : position + 8 + length], position + 12 + length
        if kind == b"IEND":
            return Png(b"".join([*parts, _chunk(b"IEND", b"")]), transparent)
        critical = not kind[0] & 32
        intact = end <= len(data) and zlib.crc32(kind + body) == int.from_bytes(data[end - 4 : end], "big")
        if not intact and (critical or kind == b"tRNS"):
            raise ValueError(f"{'a wrong checksum' if end <= len(data) else 'truncated'} in chunk {_name(kind)}")
        if kind == b"IHDR" and length == 13:
            depth, color = body[8], body[9]
        if kind == b"tRNS" and color == _RGB and depth == 16 and length == 6:
            transparent = struct.unpack(">3H", body)
        elif kind == b"tRNS" and color == _GRAY and depth in (1, 2, 4) and length == 2:
            level = int.from_bytes(body, "big") & (2**depth - 1)
            parts.append(_chunk(kind, struct.pack(">H", level * 255 // (2**depth - 1))))
        elif critical or kind == b"tRNS" or (intact and (kind == b"eXIf" or _tells_orientation(kind, body))):
            parts.append(data[position:end])
        position = end
    raise ValueError(f"more than {MAX_CHUNKS} chunks")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _name(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")


def _tells_orientation(kind: bytes, body: bytes) -> bool:
    """Whether a text chunk may hold the orientation and is small, compressed or not."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or len(body) > _MAX_TEXT or not body.startswith(_ORIENTATION_TEXTS):
        return False
    rest = body[body.index(b"\0") + 1 :]
    compressed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    try:
        unpacking = zlib.decompressobj()
        unpacking.decompress(compressed if kind != b"tEXt" else b"", _MAX_TEXT)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail
