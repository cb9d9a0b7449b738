"""Finding pictures on disk: the one definition of which files are pictures, for encoding and for training."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)
"""Name endings of pictures, in lower case."""
HEAD = 16
"""How many bytes of a file `looks_like_picture` needs."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")


class FolderEntry(NamedTuple):
    """A file below a folder, or a sub-folder that was not entered."""

    name: str
    """Path below the folder, with forward slashes."""
    path: Path
    problem: str
    """Why it cannot be read ("a linked folder, not followed"); empty for a regular file."""


def walk_files(root: PathLike, within: Path | None = None) -> Iterator[FolderEntry]:
    """Every file below `root`, nested, sorted by name, and every sub-folder that was not entered, with the reason.

    Hidden and linked sub-folders are not entered (links may form loops). within: a resolved folder; links to files
    outside of it are not followed. None follows every link to a file.
    """
    pending = [FolderEntry("", Path(root), "")]
    while pending:
        prefix, folder, _ = pending.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            yield FolderEntry(prefix.rstrip("/"), folder, f"a folder that cannot be listed ({error.strerror})")
            continue
        folders = []
        for entry in entries:
            name, path = prefix + entry.name, Path(entry.path)
            if not os.path.isdir(path):
                yield FolderEntry(name, path, _file_problem(path, within))
            elif entry.is_symlink():
                yield FolderEntry(name, path, "a linked folder, not followed")
            elif is_hidden(entry.name):
                yield FolderEntry(name, path, "hidden")
            else:
                folders.append(FolderEntry(f"{name}/", path, ""))
        pending += reversed(folders)


def _file_problem(path: Path, within: Path | None) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"
        if within is not None and path.is_symlink() and not path.resolve().is_relative_to(within):
            return "a link out of the folder, not followed"
    except (OSError, RuntimeError):
        return "a broken link"
    return ""


def looks_like_picture(name: str, head: bytes) -> bool:
    """Whether a file is taken for a picture, by the ending of its name or by its first `HEAD` bytes."""
    container = head[:4] + head[8:12] == b"RIFFWEBP" or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)
    named = name.lower().endswith(ENDINGS)
    return not is_hidden(name) and (named or head.startswith(_SIGNATURES) or container)


def is_hidden(name: str) -> bool:
    """Whether a part of the path `name` is hidden: .git, .DS_Store, and the AppleDouble files of macOS archives."""
    parts = name.replace("\\", "/").split("/")
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)


def read_head(path: PathLike) -> bytes:
    """The first `HEAD` bytes of a file; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


class PictureFiles:
    """The pictures among files and folders, as paths, in a fixed order; see `find_images`."""

    def __init__(self, sources: PathLike | Iterable[PathLike], known: Iterable[PathLike] = ()) -> None:
        """known: pictures to leave out because they were handled before, in any spelling of their paths."""
        self._sources = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
        self._known = list(known)
        self.skipped: list[str] = []
        """`path: reason` of everything that was passed over; complete at the end of an iteration."""

    def __iter__(self) -> Iterator[Path]:
        self.skipped.clear()
        folders: dict[str, object] = {}
        seen = {_identity(Path(path), folders) for path in self._known}
        for source in self._sources:
            for path in self._pictures(Path(source)):
                identity = _identity(path, folders)
                if identity not in seen:
                    seen.add(identity)
                    yield path

    def _pictures(self, source: Path) -> Iterator[Path]:
        if not source.is_dir():
            yield source
            return
        for name, path, problem in walk_files(source):
            reason = problem or ("hidden" if is_hidden(name) else "")
            if not reason and (name.lower().endswith(ENDINGS) or looks_like_picture(name, read_head(path))):
                yield path
            else:
                self.skipped.append(f"{path}: {reason or 'not a picture'}")


def find_images(sources: PathLike | Iterable[PathLike], known: Iterable[PathLike] = ()) -> PictureFiles:
    """The pictures among `sources`: files as they are, and what is a picture in folders, nested, sorted by name.

    Returns an iterable of paths; its attribute `skipped` names what was passed over, with the reason: files that are
    no pictures, hidden ones, linked sub-folders, folders without permission. A picture is found once, even if its
    folder is given twice in different spellings. known: pictures to leave out, as those of an earlier run.

    >>> found = find_images("faces/")
    >>> codes = [mu for mu, _ in vae.iter_encode(found)]
    >>> print(len(found.skipped), "files skipped")
    """
    return PictureFiles(sources, known)


def _identity(path: Path, folders: dict[str, object]) -> tuple[object, str]:
    """The same for all spellings of a path. `folders` caches what was asked of the file system."""
    parent = str(path.parent)
    if parent not in folders:
        try:
            found = os.stat(parent)
            folders[parent] = (found.st_dev, found.st_ino)
        except OSError:
            folders[parent] = os.path.abspath(parent)
    return folders[parent], path.name
