"""NumPy arrays in a .npz file that is safe to read from anywhere: no pickle, no compression, reproducible bytes."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vae_runtime.errors import ModelFileError
from vae_runtime.files import write_atomically

MAX_BYTES = 256 * 2**20
"""Largest file that is read."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date of the zip format: the same arrays give the same bytes


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Write `arrays` by name as a .npz that `numpy.load` reads, all or nothing, and return the path."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            npy.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), member.getvalue())
    return write_atomically(path, buffer.getvalue())


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file of at most `MAX_BYTES`; ModelFileError if it cannot be read or is larger."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error})") from error
    if len(data) > MAX_BYTES:
        raise ModelFileError(f"{path}: more than {MAX_BYTES // 2**20} MiB, the most that is read")
    return data


def parse_arrays(data: bytes, name: str, expected: Mapping[str, tuple[str, int]]) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz, as `expected` says: name -> (kind of dtype, "f" or "U"; number of axes).

    Raises ModelFileError for anything else: other names, pickles, compression, a header that claims more than is there.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if members.keys() != expected.keys() or len(archive.infolist()) != len(members):
                raise ValueError(f"got the arrays {sorted(members)[:8]}, expected {sorted(expected)}")
            return {key: _read_member(archive, members[key], *expected[key]) for key in expected}
    except Exception as error:  # zipfile and NumPy raise a dozen kinds over damaged files
        raise ModelFileError(
            f"{name}: not a .npz file of this project ({type(error).__name__}: {str(error)[:160]})"
        ) from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, kind: str, axes: int) -> NDArray[Any]:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    raw = io.BytesIO(archive.read(member))
    if npy.read_magic(raw) != (1, 0):
        raise ValueError(f"{member.filename} has another header")
    shape, _, dtype = npy.read_array_header_1_0(raw)
    claimed = math.prod(shape) * dtype.itemsize
    if dtype.kind != kind or len(shape) != axes or claimed != len(raw.getbuffer()) - raw.tell():
        raise ValueError(f"{member.filename} is {dtype} {shape}")
    raw.seek(0)
    array = npy.read_array(raw, allow_pickle=False)
    if kind == "U":
        array.tolist()  # which decodes it, so that code points beyond Unicode fail here
    return array
