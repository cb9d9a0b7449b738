"""Many pictures in constant memory: batches, prefetching, and codes written to disk as they come."""

from __future__ import annotations

import contextlib
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
from vae_runtime.files import lock, sync, write_atomically

T = TypeVar("T")

_GRACE = 0.5  # seconds that a closed iterator waits for its thread
_MAX_LINE = 4096
_HEADER = 128  # bytes; NumPy pads its header so that the number of rows can be changed in place


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; nothing for no items."""
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """As `batches`; where the source raises an error, what came before it is given first."""
    chunk: list[T] = []
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except Exception:
        yield chunk
        raise
    if chunk:
        yield chunk


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
    the source blocks, the thread ends when the source returns, and `close` does not wait for it. A forked child has no
    such thread: InputError.
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

    owner = os.getpid()
    thread = threading.Thread(target=work, name="vae-runtime-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            if os.getpid() != owner:
                raise InputError("an iterator cannot go on in a forked child; make a new one there")
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
    """Codes on disk as they come: a .npy (n, latent_dim) float32, and beside it a name for each row.

    `faces.npy` is a plain NumPy file at every moment: rows are written first, then the header that counts them.
    `faces.names.jsonl` holds lines of JSON: first an object that says which model made the codes, then one text a row.
    A file that ends without rows is removed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        latent_dim: int,
        *,
        model_id: str,
        variant: str | None = None,
        resume: bool = False,
    ) -> None:
        """Create the two files, or open them to append with `resume`.

        Raises InputError if one of them exists without `resume`, if another model or variant wrote them, or if another
        process is writing them; ModelFileError if they are damaged, or not such files.
        """
        self.path, self.latent_dim, self.count = Path(path), latent_dim, 0
        self.names_path = self.path.with_suffix(".names.jsonl")
        origin = {"model_id": model_id, "variant": variant}
        exists = [file for file in (self.path, self.names_path) if file.exists()]
        if exists and not resume:
            raise InputError(f"{exists[0]}: exists already; resume to append to it, or choose another name")
        if exists == [self.path]:
            raise InputError(f"{self.path}: has no {self.names_path.name} beside it; choose another name")
        self._created = not exists
        self._files = contextlib.ExitStack()
        self._names = self._files.enter_context(self.names_path.open("xb+" if self._created else "rb+"))
        if not lock(self._names):
            self._files.close()
            raise InputError(f"{self.path}: another process is writing it; wait for it, or choose another name")
        try:
            if self._created:
                self._names.write(json.dumps(origin).encode() + b"\n")
                self._names.flush()
            else:
                _check_origin(self.names_path, origin, alone=self.path not in exists)
            if self.path not in exists:
                write_atomically(self.path, self._header(0))
            self.count = len(open_codes(self.path, latent_dim))
            self._rows = self._files.enter_context(self.path.open("rb+"))
            self._trim()
        except BaseException:
            self.close()
            raise

    def _trim(self) -> None:
        """Cut what an interrupted run wrote behind the last row that the header counts."""
        self._names.seek(0)
        for _ in range(1 + self.count):
            if not self._names.readline().endswith(b"\n"):
                raise ModelFileError(f"{self.names_path}: fewer names than {self.path} has rows; choose another name")
        self._names.truncate(self._names.tell())
        self._names.seek(0, os.SEEK_END)
        self._rows.truncate(_HEADER + self.count * self.latent_dim * 4)

    def done(self) -> set[str]:
        """The names of the rows that are there."""
        return set(read_names(self.path))

    def append(self, names: list[str], codes: NDArray[np.float32]) -> None:
        """Add rows; they count once everything before the header has reached the disk.

        Raises OSError, with the path, if the disk refuses: the rows before stay.
        """
        if codes.shape != (len(names), self.latent_dim):
            raise InputError(f"codes: got {codes.shape}, expected {(len(names), self.latent_dim)}")
        try:
            self._names.write("".join(json.dumps(name) + "\n" for name in names).encode())
            self._rows.seek(_HEADER + self.count * self.latent_dim * 4)
            self._rows.write(np.ascontiguousarray(codes, "<f4").tobytes())
            for file in (self._names, self._rows):
                file.flush()
                sync(file.fileno())
            self._write_header(self.count + len(names))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.count += len(names)

    def _write_header(self, count: int) -> None:
        self._rows.seek(0)
        self._rows.write(self._header(count))
        self._rows.flush()

    def _header(self, count: int) -> bytes:
        header, shape = io.BytesIO(), (count, self.latent_dim)
        npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return header.getvalue()

    def close(self) -> None:
        """Close both files; remove them if they are new and without a row."""
        with contextlib.suppress(OSError):  # what a full disk refused does not count; `append` has raised
            self._files.close()
        if self._created and self.count == 0:
            self.path.unlink(missing_ok=True)
            self.names_path.unlink(missing_ok=True)

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
    except (OSError, ValueError, TypeError, EOFError, OverflowError) as error:
        raise ModelFileError(f"{path}: not a file of codes ({str(error)[:160]})") from error


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of the rows of a file that `CodesFile` wrote, given the path of its .npy."""
    names_path = Path(path).with_suffix(".names.jsonl")
    try:
        lines = names_path.read_text(encoding="utf-8").splitlines()
        return [str(json.loads(line)) for line in lines[1 : 1 + len(open_codes(path))]]
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{names_path}: not a file of names ({str(error)[:160]})") from error


def check_codes(path: str | os.PathLike[str], model_id: str, variant: str | None = None) -> None:
    """Raise InputError unless this model and variant made the codes of a file that `CodesFile` wrote."""
    _check_origin(Path(path).with_suffix(".names.jsonl"), {"model_id": model_id, "variant": variant}, alone=False)


def _check_origin(names_path: Path, origin: dict[str, str | None], alone: bool) -> None:
    """Raise unless the names file says that this model made its codes. alone: there are no codes for its names."""
    try:
        with names_path.open("rb") as file:
            found = json.loads(file.readline(_MAX_LINE))
            orphaned = alone and bool(file.read(1))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{names_path}: not a file of names ({str(error)[:160]})") from error
    if not isinstance(found, dict) or found.keys() != origin.keys() or orphaned:
        raise InputError(f"{names_path}: not the names of such codes; choose another name for the output")
    if found != origin:
        models = [f"{each['model_id']}, {each['variant'] or 'float32'}" for each in (found, origin)]
        raise InputError(f"{names_path}: codes of the model {models[0]}, not of {models[1]}; choose another name")
