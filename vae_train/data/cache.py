"""Decoded pictures on disk: one folder for each content and image size, filled once, then memory-mapped."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from vae_runtime.files import CACHE_VARIABLE, cache_folder
from vae_runtime.images import Pixels
from vae_train.data.labels import Labels
from vae_train.errors import DataError

_FORMAT = 2  # raise it whenever load_image or fit_square changes: cached pixels are not decoded again
_FILLING = ".filling-"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_WAIT = 2.0  # seconds of waiting for another process before a message says so


@dataclass(frozen=True)
class CacheEntry:
    """N decoded pictures."""

    pixels: NDArray[np.uint8]
    """(N, 3, S, S), memory-mapped."""
    keys: NDArray[np.uint8]
    """(N, 32): SHA-256 of each picture's pixels at its original size."""
    names: list[str]
    """N names of pictures within the source."""
    labels: Labels
    """Attribute -> N values; empty for sources without labels."""
    ignored: list[str]
    """`column: reason` of each column of a table that did not become a label."""
    unreadable: list[str]
    """`name: reason` of each picture that was left out."""
    skipped: list[str]
    """`name: reason` of each file that is not a picture."""


class Writer:
    """Writes pictures one by one into a cache entry, so that a set need not fit into memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / "pixels.u8").open("wb")
        self._keys: list[bytes] = []
        self.names: list[str] = []
        self.labels: Labels = {}
        self.ignored: list[str] = []
        self.unreadable: list[str] = []
        self.skipped: list[str] = []

    def add(self, name: str, pixels: Pixels, key: bytes) -> None:
        """Add one picture (S, S, 3) whose original has the digest `key`."""
        self._file.write(np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes())
        self._keys.append(key)
        self.names.append(name)

    def extend(self, names: list[str], pixels: NDArray[np.uint8], keys: NDArray[np.uint8]) -> None:
        """Add n pictures (n, 3, S, S) with their keys (n, 32)."""
        for start in range(0, len(pixels), 1024):
            self._file.write(pixels[start : start + 1024].tobytes())
        self._keys += [key.tobytes() for key in keys]
        self.names += names

    def finish(self) -> None:
        """Write the rest and complete the entry."""
        self._file.close()
        np.save(self._folder / "keys.npy", np.frombuffer(b"".join(self._keys), np.uint8).reshape(-1, 32))
        fields = ("names", "labels", "ignored", "unreadable", "skipped")
        meta = {"count": len(self.names)} | {name: getattr(self, name) for name in fields}
        (self._folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def picture_key(pixels: Pixels) -> bytes:
    """SHA-256 of the shape and the pixels of a picture (H, W, 3)."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def cached(digest: str, image_size: int, fill: Callable[[Writer], None]) -> CacheEntry:
    """The entry of this content and size, filled first if it does not exist.

    Raises DataError if the cache folder cannot be written, and what `fill` raises; nothing is kept then.
    """
    folder = cache_folder() / f"{digest[:32]}-{image_size}-v{_FORMAT}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _open(folder, image_size)
    with _lock(folder):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # another process has filled it meanwhile
            return _open(folder, image_size)
        shutil.rmtree(folder, ignore_errors=True)
        # Filled beside its place and renamed: a reader finds a whole entry or none.
        temporary = Path(tempfile.mkdtemp(prefix=f"{_FILLING}{folder.name}.", dir=folder.parent))
        try:
            with Writer(temporary) as writer:
                fill(writer)
                writer.finish()
            with contextlib.suppress(FileExistsError):  # filled by another process where there are no locks
                temporary.rename(folder)
        except OSError as error:
            raise _not_writable(folder.parent, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _open(folder, image_size)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Fill a cache entry alone: of processes that train together, one decodes and the others wait for it."""
    lock = FileLock(_lock_path(folder.parent, folder.name))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_WAIT)
        except Timeout:
            _check_main()
            print("waiting for another process that is decoding the same pictures ...", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _not_writable(folder.parent, error) from error
    except NotImplementedError:  # a disk without locks: two processes may decode the same pictures
        pass
    try:
        if lock.is_locked:
            _remove_leftovers(folder.parent)
        yield
    finally:
        lock.release()


def _check_main() -> None:
    """Raise DataError in a process that imports the script of its parent: it would wait for the parent for ever."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        raise DataError('a script that draws avatars has to do so under `if __name__ == "__main__":`')


def _not_writable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: the cache cannot be written ({error.strerror}); set {CACHE_VARIABLE} to another folder"
    )


def _lock_path(cache: Path, entry: str) -> Path:
    return cache / f".{entry}.lock"


def _remove_leftovers(cache: Path) -> None:
    """Remove incomplete entries of killed processes: those whose lock nobody holds."""
    for leftover in cache.glob(f"{_FILLING}*"):
        lock = FileLock(_lock_path(cache, leftover.name.removeprefix(_FILLING).partition(".")[0]))
        with contextlib.suppress(OSError, Timeout), lock.acquire(timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)


def _open(folder: Path, image_size: int) -> CacheEntry:
    """The entry in `folder`; OSError, ValueError or KeyError if it is missing or damaged."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    shape = (meta.pop("count"), 3, image_size, image_size)
    # "c": writes stay in memory; torch warns of arrays that are read-only.
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "c", shape=shape)
    keys = np.load(folder / "keys.npy", allow_pickle=False)
    counts = {len(keys), len(meta["names"]), *map(len, meta["labels"].values()), len(pixels)}
    if len(counts) > 1 or (folder / "pixels.u8").stat().st_size != pixels.nbytes:
        raise ValueError("the files of this cache entry do not belong together")
    return CacheEntry(pixels, keys, **meta)
