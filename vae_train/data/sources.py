"""What `--data` names: `avatars`, a folder, a .zip or .tar of pictures, or `hf:owner/name`, as names and bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias

from vae_runtime.errors import InputError
from vae_runtime.hub import HUB_PREFIX, download, parse_address
from vae_runtime.images import MAX_BYTES
from vae_runtime.picture_files import ENDINGS, HEAD, FolderEntry, looks_like_picture, read_head, walk_files
from vae_train.data.labels import METADATA_FILES, Table, parse_table
from vae_train.errors import DataError, UsageError

AVATARS = "avatars"
NOT_A_PICTURE = "not a picture"

_ARCHIVE_ENDINGS = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz"}
_HUB_PATTERNS = [
    "*" + "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in ending)  # the Hub's patterns are case-sensitive
    for ending in sorted({*ENDINGS, *_ARCHIVE_ENDINGS, ".parquet"})
] + [f"*{name}" for name in METADATA_FILES]

Picture: TypeAlias = tuple[str, Callable[[], bytes]]
"""The name of a picture within its source, and a function that reads its bytes."""


def check_source(source: str, option: str = "--data ") -> None:
    """Raise UsageError with one sentence if `source` cannot be read; looks at names only, decodes nothing.

    option: what the sentence starts with, before the source.
    """
    if source == AVATARS:
        return
    if source.startswith(HUB_PREFIX):
        try:
            parse_address(source)
        except InputError as error:
            raise UsageError(f"{option}{error}") from None
        return
    path = Path(source)
    if not source or not path.exists():
        raise UsageError(
            f"{option}{source}: no such file or folder; expected avatars, a folder, a .zip or .tar, or hf:owner/name"
        )
    if not os.access(path, os.R_OK):
        raise UsageError(f"{option}{source}: no permission to read it")
    if path.is_dir():
        _check_folder(path, option)
    elif not (path.is_file() and (zipfile.is_zipfile(path) or _is_tar(path))):
        raise UsageError(f"{option}{source}: neither a folder nor a .zip or .tar that is whole")


def _check_folder(path: Path, option: str) -> None:
    skipped: list[str] = []
    for name, place, problem in walk_files(path, path.resolve()):
        if not problem and _is_picture(name, place):
            return
        skipped.append(f"{printable(name)}: {problem or NOT_A_PICTURE}")
    found = f" ({summarize(skipped)})" if skipped else ""
    raise UsageError(f"{option}{printable(str(path))}: no pictures in this folder{found}")


def table_beside(source: str) -> Table:
    """The table of labels in the folder that a folder or an archive lies in; empty if there is none."""
    if source == AVATARS or source.startswith(HUB_PREFIX):
        return {}
    for name in METADATA_FILES:
        with contextlib.suppress(OSError, DataError):
            return parse_table(name, (Path(source).resolve().parent / name).read_bytes())
    return {}


def check_outside(folder: Path, sources: Sequence[str], what: str) -> None:
    """Raise UsageError if `folder`, which is written to, lies inside a folder that pictures are read from.

    what: the option or variable that names it.
    """
    for source in sources:
        is_folder = source != AVATARS and not source.startswith(HUB_PREFIX) and Path(source).is_dir()
        if is_folder and folder.resolve().is_relative_to(Path(source).resolve()):
            raise UsageError(
                f"{what} {folder}: lies inside {source}, so what is written there would be read as pictures later; "
                "give a folder outside of it"
            )


def open_source(source: str) -> PictureSource:
    """The pictures of a folder, an archive or a Hub dataset, which is downloaded first if it is not cached."""
    if source.startswith(HUB_PREFIX):
        folder = download(source, kind="dataset", patterns=_HUB_PATTERNS)
        # A snapshot of the Hub consists of links into its blob store, two folders up.
        return PictureSource(source, list(walk_files(folder, folder.parent.parent.resolve())), archives=True)
    path = Path(source)
    name = printable(path.resolve().name)
    if path.is_dir():
        return PictureSource(name, list(walk_files(path, path.resolve())), archives=False)
    return PictureSource(name, [FolderEntry(name, path, "")], archives=True)


class PictureSource:
    """The pictures of files, archives and tables in a fixed order.

    `skipped` holds `name: reason` of every file that is not a picture, `tables` the tables of labels; both are complete
    after an iteration.
    """

    def __init__(self, name: str, files: list[FolderEntry], archives: bool) -> None:
        """archives: whether files may be archives and tables that hold pictures."""
        self.name, self.files, self.archives = name, files, archives
        self.skipped: list[str] = []
        self.tables: list[Table] = []
        self._contents = [(name, problem or self._content(name, path)) for name, path, problem in files]

    def _content(self, name: str, path: Path) -> str:
        # Of other files than pictures, tables and archives only the name counts: it is listed among the skipped ones.
        matters = self.archives or _is_picture(name, path) or _is_table(name)
        return _file_digest(path) if matters else NOT_A_PICTURE

    def digest(self) -> str:
        """SHA-256 of everything that decides which pictures there are: file names and contents.

        A single archive may be renamed: its own name does not count.
        """
        total = hashlib.sha256(b"archives" if self.archives else b"pictures")
        for name, content in self._contents:
            inner = "" if self.archives and len(self.files) == 1 else name
            total.update(f"{inner}\0{content}\0".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def legacy_digest(self) -> str:
        """The digest under which models of version 0 and their runs know an archive; it depends on the file's name."""
        lines = (f"{name}\0{content}\0".encode("utf-8", "surrogateescape") for name, content in self._contents)
        return hashlib.sha256(b"".join(lines)).hexdigest()

    def __iter__(self) -> Iterator[Picture]:
        self.skipped.clear()
        self.tables.clear()
        for name, path, problem in self.files:
            if problem:
                self._skip(name, problem)
            elif _is_picture(name, path):
                yield printable(name), partial(_file_bytes, path)
            elif _is_table(name):
                self._table(name, partial(_file_bytes, path))
            elif self.archives and zipfile.is_zipfile(path):
                yield from self._zip(name, path)
            elif self.archives and _ending(name) == ".parquet":
                yield from self._parquet(name, path)
            elif self.archives and _is_tar(path):
                yield from self._tar(name, path)
            else:
                self._skip(name)

    def _skip(self, name: str, reason: str = NOT_A_PICTURE) -> None:
        self.skipped.append(f"{printable(name)}: {reason}")

    def _table(self, name: str, read: Callable[[], bytes]) -> None:
        folder, _, file = printable(name).rpartition("/")
        try:
            self.tables.append(parse_table(file, read(), f"{folder}/" if folder else ""))
        except (DataError, OSError) as error:
            self._skip(name, f"not a table of labels ({error})")

    def _zip(self, archive: str, path: Path) -> Iterator[Picture]:
        try:
            with zipfile.ZipFile(path) as file:
                for member in sorted(file.infolist(), key=lambda item: item.filename):
                    if member.is_dir():
                        continue
                    if looks_like_picture(member.filename, _zip_head(file, member)):
                        yield member.filename, partial(_zip_bytes, file, member)
                    elif _is_table(member.filename):
                        self._table(member.filename, partial(_zip_bytes, file, member))
                    else:
                        self._skip(member.filename)
        except Exception as error:
            raise DataError(f"{printable(archive)}: not a readable .zip ({error})") from error

    def _tar(self, archive: str, path: Path) -> Iterator[Picture]:
        try:
            with tarfile.open(path, "r:*", tarinfo=_WholeHeader) as file:
                for member in file:
                    if member.isdir():
                        continue
                    # Links and devices have no bytes of their own; nothing is ever written to the disk.
                    stream = file.extractfile(member) if member.isreg() else None
                    data = stream.read(MAX_BYTES + 1) if stream else b""
                    if stream and looks_like_picture(member.name, data[:HEAD]):
                        yield printable(member.name), partial(bytes, data)
                    elif stream and _is_table(member.name):
                        self._table(member.name, partial(bytes, data))
                    else:
                        self._skip(member.name)
        except Exception as error:  # tarfile's, the disk's, and those of zlib, bz2 and lzma
            raise DataError(f"{printable(archive)}: not a readable .tar ({error})") from error

    def _parquet(self, table: str, path: Path) -> Iterator[Picture]:
        """Rows of the first image column, {bytes, path} or plain binary; columns of text and integers are labels."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                images = [field.name for field in schema if _is_image_column(field.type)][:1]
                if not images:
                    self._skip(table, "a table without a column of pictures")
                    return
                columns = {field.name: _class_names(schema, field.name) for field in schema if _is_label(field.type)}
                labels: Table = {}
                row = 0
                for batch in file.iter_batches(batch_size=256, columns=images + list(columns)):
                    for value in batch.to_pylist():
                        name, image = f"{table}#{row}", value.pop(images[0])
                        data = image.get("bytes") if isinstance(image, dict) else image
                        labels[name] = {
                            key: columns[key].get(each, str(each)) for key, each in value.items() if each is not None
                        }
                        row += 1
                        yield name, partial(bytes, data or b"")
                self.tables.append(labels)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{table}: not a readable .parquet ({str(error)[:120]})") from error


def _is_table(name: str) -> bool:
    return name.rpartition("/")[2] in METADATA_FILES


def _is_picture(name: str, path: Path) -> bool:
    return looks_like_picture(name, b"") or looks_like_picture(name, read_head(path))


def _ending(name: str) -> str:
    lower = name.lower()
    return next((e for e in (".tar.gz", ".tar.bz2", ".tar.xz") if lower.endswith(e)), os.path.splitext(lower)[1])


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def summarize(skipped: Sequence[str], shown: int = 3) -> str:
    """ "2 not a picture: a.txt, b.txt; 1 a broken link: c.png" from lines of `name: reason`."""
    reasons: dict[str, list[str]] = {}
    for line in skipped:
        name, _, reason = line.rpartition(": ")
        reasons.setdefault(reason, []).append(name)
    parts = [
        f"{len(names)} {reason}: {', '.join(names[:shown])}" + (", ..." if len(names) > shown else "")
        for reason, names in reasons.items()
    ]
    return "; ".join(parts)


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"


def _file_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)  # one more than load_image accepts, so that it refuses the rest unread


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, ValueError):  # what gzip, bz2 and lzma raise for a file that was cut
        return False


class _WholeHeader(tarfile.TarInfo):
    """A header of a member, or ReadError: tarfile takes a missing or damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the end is marked by zeros
            return super().frombuf(buf, encoding, errors)
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"cut or damaged: {error}") from error


def _zip_head(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if looks_like_picture(member.filename, b""):
        return b""
    try:
        with file.open(member) as stream:
            return stream.read(HEAD)
    except Exception:  # damaged or encrypted: not a picture by its content, and not one by its name
        return b""


def _zip_bytes(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    # The size in the header may be wrong: what is unpacked is limited, not what is promised.
    with file.open(member) as stream:
        return stream.read(MAX_BYTES + 1)


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    )


def _class_names(schema: Any, column: str) -> dict[Any, str]:
    """Number -> name of the classes of a column, from the features that the Hub's datasets library writes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return dict(enumerate(features[column]["names"]))
    except (KeyError, TypeError, ValueError):
        return {}


def _is_image_column(kind: Any) -> bool:
    import pyarrow as pa

    binary = (pa.types.is_binary, pa.types.is_large_binary)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and any(test(kind.field(index).type) for test in binary)
    return any(test(kind) for test in binary)
