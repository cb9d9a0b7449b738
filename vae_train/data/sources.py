"""A source of faces becomes one uint8 array (N, 3, S, S): decoded once, cached on disk, memory-mapped ever after.

Sources: `avatars` (drawn here), a folder, a .zip or .tar of pictures, or `hf:owner/name`. Every picture passes the
funnel that the runtime uses, so that a model sees the same pixels in training and in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from vae_runtime.errors import InputError
from vae_runtime.hub import HUB_PREFIX, download, parse_address
from vae_runtime.images import MAX_BYTES, fit_square, load_image
from vae_train.errors import DataError, UsageError

AVATARS = "avatars"
HELD_OUT = 0.05
"""Share of the distinct pictures that is never trained on."""
MAX_UNREADABLE = 0.01
"""Share of unreadable pictures up to which a run goes on without them."""

_CACHE_FORMAT = 1  # to be raised with any change of the funnel: cached pixels do not pass it again
_IMAGE_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"}
_ARCHIVE_ENDINGS = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz"}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
_HUB_PATTERNS = [
    "*" + "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in ending)  # the Hub's patterns know no ignored case
    for ending in sorted(_IMAGE_ENDINGS | _ARCHIVE_ENDINGS | {".parquet"})
]
_SHOWN = 20

File: TypeAlias = tuple[str, Path | None]
"""Name within the source, and place on the disk; None for a link out of it, a dangling one, or no regular file."""
Files: TypeAlias = list[File]
Entry: TypeAlias = tuple[str, Callable[[], bytes]]
"""The name of a picture within its source, and how to get its bytes."""
Decoded: TypeAlias = tuple[NDArray[np.uint8], bytes]
"""(S, S, 3), and the digest of the picture at its original size."""


@dataclass(frozen=True)
class Faces:
    """A decoded source."""

    name: str
    """The source without its folder."""
    pixels: NDArray[np.uint8]
    """(N, 3, S, S), memory-mapped from the cache."""
    keys: NDArray[np.uint8]
    """(N, 32): SHA-256 of each picture's pixels at its original size."""
    labels: dict[str, list[str]]
    """Attribute -> one value a face; empty for sources without labels."""
    sha256: str
    """Digest of the content of the source."""
    unreadable: list[str]
    """`name: reason` of each picture that was left out."""
    stray: int
    """Files that are not pictures at all, and were passed over."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def duplicates(self) -> int:
        """Pictures whose pixels occur before in the set."""
        return len(self) - len(np.unique(self.keys, axis=0))

    def held_out(self) -> NDArray[np.bool_]:
        """(N,): True for the held-out pictures: those 5 % of the distinct contents whose digests are the smallest.

        The digest decides alone, so copies never straddle the split, and it is the same at every image size.
        """
        distinct, inverse = np.unique(self.keys, axis=0, return_inverse=True)
        count = max(1, round(HELD_OUT * len(distinct)))
        return np.asarray(inverse.reshape(-1) < count)


def check_source(source: str) -> None:
    """Raise UsageError with one sentence if `source` cannot be one; reads names at most, never a picture."""
    if source == AVATARS:
        return
    if source.startswith(HUB_PREFIX):
        try:
            parse_address(source)
        except InputError as error:
            raise UsageError(f"--data {error}") from None
        return
    path = Path(source)
    if not source or not path.exists():
        raise UsageError(
            f"--data {source}: no such file or folder; give avatars, a folder, a .zip/.tar or hf:owner/name"
        )
    if not os.access(path, os.R_OK):
        raise UsageError(f"--data {source}: no permission to read it")
    if path.is_dir():
        if next(_folder_entries(path, within=path.resolve()), None) is None:
            found = sum(len(files) for _, _, files in os.walk(path))
            raise UsageError(f"--data {source}: no pictures among the {found} files of this folder")
    elif not (path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))):
        raise UsageError(f"--data {source}: not a folder and not a readable .zip or .tar")


def load_faces(source: str, image_size: int, avatars: int = 8000, seed: int = 0) -> Faces:
    """Decode `source` at `image_size`, or map it from the cache if its content is there already.

    avatars, seed: how many faces `avatars` draws, and which; the other sources do not use them.
    Raises UsageError for what is not a source, DataError when more than 1 % of the pictures are unreadable.
    """
    check_source(source)
    if source == AVATARS:
        from vae_train.data.avatars import VERSION

        digest = hashlib.sha256(f"avatars {VERSION} {avatars} {seed}".encode()).hexdigest()
        return _cached(AVATARS, digest, image_size, lambda sink: _draw_into(sink, avatars, image_size, seed))
    if source.startswith(HUB_PREFIX):
        folder = download(source, kind="dataset", patterns=_HUB_PATTERNS)
        return _decoded(source, _snapshot_files(folder), image_size, archives=True)
    path = Path(source)
    name = path.resolve().name
    if path.is_dir():
        return _decoded(name, list(_folder_files(path, within=path.resolve())), image_size, archives=False)
    return _decoded(name, [(name, path)], image_size, archives=True)


def cache_folder() -> Path:
    """Where decoded sources lie: $ANIME_VAE_CACHE, else anime-vae in the user's cache folder."""
    if chosen := os.environ.get("ANIME_VAE_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path(os.path.expanduser("~")) / ".cache") / "anime-vae"


# ---- what lies in a source ------------------------------------------------------------------------------------------


def _ending(name: str) -> str:
    lower = name.lower()
    return next((e for e in (".tar.gz", ".tar.bz2", ".tar.xz") if lower.endswith(e)), os.path.splitext(lower)[1])


def _hidden(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)


def _looks_like_image(name: str, head: bytes) -> bool:
    if _hidden(name):  # .DS_Store, and the shadows that macOS puts beside each picture of an archive
        return False
    return _ending(name) in _IMAGE_ENDINGS or head.startswith(_SIGNATURES) or head[:4] + head[8:12] == b"RIFFWEBP"


def _folder_files(root: Path, within: Path) -> Iterator[File]:
    """Each file below `root`, sorted; links that leave `within` are not followed."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            path = Path(folder, file)
            name = path.relative_to(root).as_posix()
            try:
                inside = not path.is_symlink() or path.resolve().is_relative_to(within)
                yield name, path if inside and stat.S_ISREG(path.stat().st_mode) else None
            except (OSError, RuntimeError):  # a dangling link, or a loop of links
                yield name, None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""


def _folder_entries(root: Path, within: Path) -> Iterator[tuple[str, Path]]:
    for name, path in _folder_files(root, within):
        if path is not None and _looks_like_image(name, _head(path)):
            yield name, path


def _snapshot_files(folder: Path) -> Files:
    # A snapshot of the Hub consists of links into its blob store, two folders up.
    return list(_folder_files(folder, within=folder.parent.parent.resolve()))


class _Contents:
    """The pictures of files, folders, archives and tables, one after the other; `stray` counts what is none."""

    def __init__(self, files: Files, archives: bool) -> None:
        """archives: whether the files may be archives and tables themselves, or pictures only."""
        self.files, self.archives = files, archives
        self.stray = 0

    def __iter__(self) -> Iterator[Entry]:
        for name, path in self.files:
            if path is None:
                self.stray += 1
            elif _looks_like_image(name, _head(path)):
                yield name, partial(_file_bytes, path)
            elif self.archives and zipfile.is_zipfile(path):
                yield from self._zip(name, path)
            elif self.archives and _ending(name) == ".parquet":
                yield from self._parquet(name, path)
            elif self.archives and tarfile.is_tarfile(path):
                yield from self._tar(name, path)
            else:
                self.stray += 1

    def _zip(self, archive: str, path: Path) -> Iterator[Entry]:
        try:
            with zipfile.ZipFile(path) as file:
                for member in sorted(file.infolist(), key=lambda item: item.filename):
                    if member.is_dir():
                        continue
                    if not _looks_like_image(member.filename, _zip_head(file, member)):
                        self.stray += 1
                        continue
                    yield member.filename, partial(_zip_bytes, file, member)
        except Exception as error:
            raise DataError(f"{archive}: not a readable .zip ({error})") from error

    def _tar(self, archive: str, path: Path) -> Iterator[Entry]:
        try:
            with tarfile.open(path, "r:*") as file:
                for member in file:
                    if member.isdir():
                        continue
                    # Links and devices have no bytes of their own; nothing is ever written to the disk.
                    stream = file.extractfile(member) if member.isreg() else None
                    data = stream.read(MAX_BYTES + 1) if stream else b""
                    if not stream or not _looks_like_image(member.name, data[:16]):
                        self.stray += 1
                        continue
                    yield member.name, partial(bytes, data)
        except Exception as error:  # tarfile's, the disk's, and those of zlib, bz2 and lzma
            raise DataError(f"{archive}: not a readable .tar ({error})") from error

    def _parquet(self, table: str, path: Path) -> Iterator[Entry]:
        """Rows of columns in the form of the Hub's image feature, {bytes, path}, or of plain binary."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                columns = [field.name for field in file.schema_arrow if _is_image_column(field.type)]
                if not columns:
                    self.stray += 1
                    return
                row = 0
                for batch in file.iter_batches(batch_size=256, columns=columns[:1]):
                    for value in batch.column(0).to_pylist():
                        data = value.get("bytes") if isinstance(value, dict) else value
                        yield f"{table}#{row}", partial(bytes, data or b"")
                        row += 1
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{table}: not a readable .parquet ({str(error)[:120]})") from error


def _is_image_column(kind: Any) -> bool:
    import pyarrow as pa

    binary = (pa.types.is_binary, pa.types.is_large_binary)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and any(test(kind.field(index).type) for test in binary)
    return any(test(kind) for test in binary)


def _file_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)  # one more than the funnel takes, so that it refuses the rest unseen


def _zip_head(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if _ending(member.filename) in _IMAGE_ENDINGS:
        return b""
    try:
        with file.open(member) as stream:
            return stream.read(16)
    except Exception:  # damaged or encrypted: no picture by its content, and by its name it is none either
        return b""


def _zip_bytes(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    # The size in the header may lie: what is unpacked is limited, not what is promised.
    with file.open(member) as stream:
        return stream.read(MAX_BYTES + 1)


# ---- decoding and the cache -----------------------------------------------------------------------------------------


class _Sink:
    """Takes faces one by one into the files of a cache entry, so that no set has to fit into memory."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / "pixels.u8").open("wb")
        self.keys: list[bytes] = []
        self.labels: dict[str, list[str]] = {}
        self.unreadable: list[str] = []
        self.stray = 0

    def add(self, pixels: NDArray[np.uint8], key: bytes) -> None:
        self.file.write(np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes())
        self.keys.append(key)


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def _content_digest(files: Files, archives: bool) -> str:
    """Of all names and bytes, and of whether archives among them are opened: it decides what the faces are."""
    total = hashlib.sha256(b"" if archives else b"pictures only")
    for name, path in files:
        if path is None:
            total.update(f"{name}\0not followed\0".encode("utf-8", "surrogateescape"))
            continue
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            content = "unreadable"
        total.update(f"{name}\0{content}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _decoded(name: str, files: Files, image_size: int, archives: bool) -> Faces:
    contents = _Contents(files, archives)
    return _cached(
        name, _content_digest(files, archives), image_size, lambda sink: _decode_into(sink, name, contents, image_size)
    )


def _decode_into(sink: _Sink, name: str, contents: _Contents, image_size: int) -> None:
    def decode(data: bytes) -> Decoded:
        picture = load_image(data)
        return fit_square(picture, image_size), _digest(picture)

    total = None if contents.archives else len(contents.files)
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc=f"decoding {name}", unit="img") as bar:
        for entry, task in _in_order(pool, decode, contents):
            try:
                pixels, key = task.result()
            # Beside the funnel refusals: what disks and archives say of a member, in the classes of zlib and lzma too.
            except Exception as error:
                reason = str(error).removeprefix("bytes: ") or type(error).__name__
                sink.unreadable.append(f"{entry}: {reason}")
            else:
                sink.add(pixels, key)
            bar.update()
    sink.stray = contents.stray
    found = len(sink.keys) + len(sink.unreadable)
    if found == 0:
        raise DataError(f"{name}: no pictures in it ({sink.stray} other files)")
    if len(sink.unreadable) > MAX_UNREADABLE * found:
        raise DataError(
            f"{name}: {len(sink.unreadable)} of {found} pictures cannot be read, more than {MAX_UNREADABLE:.0%}; "
            f"mend or remove them: {'; '.join(sink.unreadable[:_SHOWN])}"
            + (f"; and {len(sink.unreadable) - _SHOWN} more" if len(sink.unreadable) > _SHOWN else "")
        )


def _in_order(
    pool: ThreadPoolExecutor, decode: Callable[[bytes], Decoded], entries: Iterable[Entry]
) -> Iterator[tuple[str, Future[Decoded]]]:
    """Each entry in its order, a few dozen decoded ahead; the future raises what went wrong in reading or decoding."""
    waiting: deque[tuple[str, Future[Decoded]]] = deque()
    for name, read in entries:
        try:
            task = pool.submit(decode, read())
        except Exception as error:
            task = Future()
            task.set_exception(error)
        waiting.append((name, task))
        if len(waiting) > 64:
            yield waiting.popleft()
    yield from waiting


def _draw_into(sink: _Sink, count: int, image_size: int, seed: int) -> None:
    from vae_train.data.avatars import draw_many

    for pixels, labels in tqdm(draw_many(count, image_size, seed), total=count, desc="drawing avatars", unit="img"):
        sink.add(pixels, _digest(pixels))
        for attribute, value in labels.items():
            sink.labels.setdefault(attribute, []).append(value)


def _cached(name: str, digest: str, image_size: int, fill: Callable[[_Sink], None]) -> Faces:
    """The cache entry of this content and size, filled first if it is not there yet."""
    folder = cache_folder() / f"{digest[:32]}-{image_size}-v{_CACHE_FORMAT}"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _open_cache(folder, name, digest, image_size)
    with _cache_lock(folder):
        with contextlib.suppress(OSError, ValueError, KeyError):  # another process has filled it meanwhile
            return _open_cache(folder, name, digest, image_size)
        shutil.rmtree(folder, ignore_errors=True)
        # Filled beside its place and renamed: a reader finds a whole entry or none.
        temporary = Path(tempfile.mkdtemp(prefix=".filling-", dir=folder.parent))
        try:
            sink = _Sink(temporary)
            with sink.file:
                fill(sink)
            np.save(temporary / "keys.npy", np.frombuffer(b"".join(sink.keys), np.uint8).reshape(-1, 32))
            meta = {"count": len(sink.keys), "labels": sink.labels, "unreadable": sink.unreadable, "stray": sink.stray}
            (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _open_cache(folder, name, digest, image_size)


@contextlib.contextmanager
def _cache_lock(folder: Path) -> Iterator[None]:
    """Fill a cache entry alone: of processes that train together, one decodes and the others wait for it."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DataError(
            f"{folder.parent}: the cache cannot be written ({error.strerror}); set ANIME_VAE_CACHE to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _open_cache(folder: Path, name: str, digest: str, image_size: int) -> Faces:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    shape = (meta["count"], 3, image_size, image_size)
    # "c": what is written stays in memory; torch warns of arrays that are read-only.
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "c", shape=shape)
    keys = np.load(folder / "keys.npy", allow_pickle=False)
    if len(keys) != len(pixels) or (folder / "pixels.u8").stat().st_size != pixels.nbytes:
        raise ValueError("the files of this cache entry do not belong together")
    return Faces(name, pixels, keys, meta["labels"], digest, meta["unreadable"], meta["stray"])
