"""Many pictures in constant memory: batches, prefetching, and codes written to disk as they come."""

from __future__ import annotations

import io
import itertools
import json
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vae_runtime.errors import ImageError, InputError, ModelFileError

T = TypeVar("T")

_GRACE = 0.5  # seconds that a closed iterator waits for its thread
_HEADER = 128  # bytes; NumPy pads its header so that the number of rows can be changed in place


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; nothing for no items."""
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch


class Batches(Iterator[T]):
    """Batches of pictures, made lazily, with `skipped`: what was left out, the position and the error of each."""

    def __init__(self, items: Generator[T], skipped: list[tuple[int, ImageError]]) -> None:
        """skipped: the list that the source of `items` fills."""
        self._items, self.skipped = items, skipped

    def __iter__(self) -> Batches[T]:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def close(self) -> None:
        """End early, and with it the thread that reads ahead."""
        self._items.close()


def prefetch(items: Iterable[T], depth: int = 1) -> Generator[T]:
    """The same items, made in a thread of their own, up to `depth` of them before they are asked for.

    An error of the source is raised where its item would have come. Closing the iterator early ends the thread; where
    the source blocks, the thread ends when the source returns, and `close` does not wait for it.
    """
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    left = threading.Event()

    def offer(good: bool, item: T | BaseException | None) -> bool:
        while not left.is_set():
            try:
                ready.put((good, item), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(True, item):
                    return
        except BaseException as error:  # handed to the caller, whatever it is
            offer(False, error)
            return
        offer(False, None)

    thread = threading.Thread(target=work, name="vae-runtime-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            good, item = ready.get()
            if good:
                yield item  # type: ignore[misc]  # a good item is a T
            elif item is None:
                return
            else:
                raise item  # type: ignore[misc]  # else it is an exception
    finally:
        left.set()
        thread.join(_GRACE)


class CodesFile:
    """Codes on the disk as they come: a .npy (n, latent_dim) float32, and beside it a name for each row.

    `faces.npy` is a plain NumPy file at every moment: rows are written first, then the header that counts them. Names
    are lines of JSON in `faces.names.jsonl`. Opening with `resume` goes on behind the last whole row.
    """

    def __init__(self, path: str | os.PathLike[str], latent_dim: int, resume: bool = False) -> None:
        """Create the two files, or open them again; InputError if they are there without `resume`, or do not fit."""
        self.path, self.latent_dim = Path(path), latent_dim
        self.names_path = self.path.with_suffix(".names.jsonl")
        self.count = 0
        if self.path.exists() and not resume:
            raise InputError(f"{self.path}: exists already; resume to go on with it, or give another name")
        if self.path.exists():
            self.count = len(open_codes(self.path, latent_dim))
        self._rows = open(self.path, "r+b" if self.count or self.path.exists() else "w+b")  # noqa: SIM115
        self._names = open(self.names_path, "r+b" if self.names_path.exists() and resume else "w+b")  # noqa: SIM115
        try:
            self._trim()
        except BaseException:
            self.close()
            raise

    def _trim(self) -> None:
        """Cut what an interrupted run wrote behind the last row that the header counts."""
        for _ in range(self.count):
            if not self._names.readline().endswith(b"\n"):
                raise InputError(f"{self.names_path}: fewer names than {self.path} has rows; start again")
        self._names.truncate(self._names.tell())
        self._names.seek(0, os.SEEK_END)
        self._rows.truncate(_HEADER + self.count * self.latent_dim * 4)
        self._write_header()

    def done(self) -> set[str]:
        """The names of the rows that are there."""
        return set(read_names(self.path))

    def append(self, names: list[str], codes: NDArray[np.float32]) -> None:
        """Add rows; they count once everything before the header has reached the disk."""
        if codes.shape != (len(names), self.latent_dim):
            raise InputError(f"codes: got {codes.shape}, expected {(len(names), self.latent_dim)}")
        self._names.write("".join(json.dumps(name) + "\n" for name in names).encode())
        self._rows.seek(_HEADER + self.count * self.latent_dim * 4)
        self._rows.write(np.ascontiguousarray(codes, "<f4").tobytes())
        for file in (self._names, self._rows):
            file.flush()
            os.fsync(file.fileno())
        self.count += len(names)
        self._write_header()

    def _write_header(self) -> None:
        header = io.BytesIO()
        shape = (self.count, self.latent_dim)
        npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self._rows.seek(0)
        self._rows.write(header.getvalue())
        self._rows.flush()

    def close(self) -> None:
        """Close both files."""
        self._rows.close()
        self._names.close()

    def __enter__(self) -> CodesFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_codes(path: str | os.PathLike[str], latent_dim: int | None = None) -> NDArray[np.float32]:
    """The codes (n, latent_dim) of a .npy, mapped and not read; ModelFileError for a file that is not one.

    No pickle, and no header that claims more than the file holds.
    """
    try:
        with open(path, "rb") as file:
            if npy.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, fortran, dtype = npy.read_array_header_1_0(file)
            start = file.tell()
            size = file.seek(0, os.SEEK_END)
        rows = np.prod(shape, dtype=object) * 4
        if dtype != np.dtype("<f4") or fortran or len(shape) != 2 or start + rows > size:
            raise ValueError(f"{dtype} {shape} in {size} bytes")
        if latent_dim is not None and shape[1] != latent_dim:
            raise ValueError(f"codes of {shape[1]} numbers, this model has {latent_dim}")
        if shape[0] == 0:
            return np.empty(shape, np.float32)
        return np.memmap(path, np.float32, "r", start, shape)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise ModelFileError(f"{path}: not a file of codes ({str(error)[:160]})") from error


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of the rows of a file that `CodesFile` wrote, given the path of its .npy."""
    names_path = Path(path).with_suffix(".names.jsonl")
    try:
        lines = names_path.read_text(encoding="utf-8").splitlines()
        return [str(json.loads(line)) for line in lines[: len(open_codes(path))]]
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{names_path}: not a file of names ({str(error)[:160]})") from error
