"""Load sources of faces as one uint8 array (N, 3, S, S): decoded once, cached on disk, then memory-mapped.

Images are decoded by the functions of the runtime, so a model sees the same pixels in training and in use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vae_runtime.files import CACHE_VARIABLE, cache_folder
from vae_runtime.images import Pixels, fit_square, load_image
from vae_train.data.cache import CacheEntry, Writer, cached, picture_key
from vae_train.data.labels import Labels, Table, class_labels, join_labels, keep_labels, label_pictures, read_labels
from vae_train.data.sources import (
    AVATARS,
    Picture,
    PictureSource,
    check_outside,
    check_source,
    open_source,
    summarize,
    table_beside,
)
from vae_train.errors import DataError

HELD_OUT = 0.05
"""Share of the distinct pictures that is held out."""
MAX_UNREADABLE = 0.01
"""Largest share of unreadable pictures that a run tolerates."""

MIN_DISTINCT = 10
"""Minimum number of distinct pictures, at their original size and at that of the model."""

_SHOWN = 20
_AHEAD = 64
_SEEDS = 100  # of avatars that are tried to identify the training data of a model

Decoded: TypeAlias = tuple[Pixels, bytes]
"""(S, S, 3), and the digest of the picture at its original size."""


@dataclass(frozen=True, kw_only=True)
class Faces:
    """The decoded pictures of one source, or of several."""

    name: str
    """The source without its folder; of several, joined by " + "."""
    pixels: NDArray[np.uint8]
    """(N, 3, S, S), memory-mapped from the cache."""
    keys: NDArray[np.uint8]
    """(N, 32): SHA-256 of each picture's pixels at its original size."""
    names: list[str]
    """N names of the pictures, each behind the name of its source: "faces.zip/0.png"."""
    labels: Labels
    """Attribute -> N values, None where a picture has no value; empty for sources without labels."""
    ignored: list[str]
    """`column: reason` of each column of a table that did not become a label."""
    sha256: str
    """Identity of the data: digest of the pictures in their order. File names, paths and packing do not matter."""
    unreadable: list[str]
    """`name: reason` of each picture that was left out."""
    skipped: list[str]
    """`name: reason` of each file that is not a picture."""
    legacy_sha256: str | None = None
    """The identity of an archive in models that were made before digests were independent of its name."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def duplicates(self) -> int:
        """Pictures whose pixels occur earlier in the set."""
        return len(self) - len(np.unique(self.keys, axis=0))

    def matches(self, sha256: str) -> bool:
        """Whether a run or a model with this digest of its training data was trained on these pictures."""
        return sha256 in (self.sha256, self.legacy_sha256)

    def check_trainable(self, batch_size: int) -> None:
        """Raise DataError, with what was found and skipped, if there are too few pictures or too few different ones."""
        distinct = len(self) - self.duplicates
        found = f"{self.name}: {len(self)} pictures" + (f", {distinct} different ones" if distinct < len(self) else "")
        if self.skipped:
            found += f" (skipped: {summarize(self.skipped)})"
        training = int((~self.held_out()).sum())
        if distinct < MIN_DISTINCT:
            raise DataError(f"{found}; expected at least {MIN_DISTINCT} different pictures")
        if training < batch_size:
            raise DataError(
                f"{found}, of which {training} are not held out, fewer than one batch of {batch_size}; add pictures or "
                "choose a smaller --batch-size"
            )
        if not _has_distinct(self.pixels, MIN_DISTINCT):
            side = self.pixels.shape[-1]
            raise DataError(
                f"{found}; fewer than {MIN_DISTINCT} of them differ at {side}x{side}: give other pictures or a larger "
                "--image-size"
            )

    def describe_labels(self) -> str:
        """ "labels of 90 of 100 pictures: hair (12 values), eyes (11); ignored id: 100 different values ..." """
        rows = zip(*self.labels.values(), strict=True)
        labelled = sum(any(value is not None for value in row) for row in rows)
        columns = (f"{name} ({len(set(values) - {None})} values)" for name, values in self.labels.items())
        parts = [f"labels of {labelled} of {len(self)} pictures: {', '.join(columns)}"] if self.labels else []
        return "; ".join(parts + [f"ignored {line}" for line in self.ignored])

    def held_out(self) -> NDArray[np.bool_]:
        """(N,): True for the held-out pictures: the 5 % of distinct contents whose digests are the smallest.

        The digest alone decides, so copies never straddle the split, and it is the same at every image size.
        """
        distinct, inverse = np.unique(self.keys, axis=0, return_inverse=True)
        count = max(1, round(HELD_OUT * len(distinct)))
        return np.asarray(inverse.reshape(-1) < count)


def load_faces(
    sources: str | Sequence[str], image_size: int, avatars: int = 8000, seed: int = 0, labels: str | None = None
) -> Faces:
    """Decode one or several sources at `image_size`, or map them from the cache if their content is there already.

    Several sources become one set whose identity and order do not depend on the order in which they are given; a
    source whose content is given twice counts once. avatars, seed: how many faces `avatars` draws, and which.
    labels: a .csv or .jsonl file with a column file_name; its columns replace those that the sources have.
    Raises UsageError for an invalid source or file of labels, DataError when more than 1 % of the pictures of a source
    are unreadable, or when `labels` names none of them.
    """
    given = [sources] if isinstance(sources, str) else list(sources)
    for source in given:
        check_source(source)
    check_outside(cache_folder(), given, CACHE_VARIABLE)
    table = read_labels(Path(labels)) if labels else {}
    parts: dict[str, Faces] = {}
    for source in given:
        part = _load(source, image_size, avatars, seed)
        if part.sha256 in parts:
            print(f"--data {source}: the same pictures as {parts[part.sha256].name}, used once", file=sys.stderr)
        parts.setdefault(part.sha256, part)
    faces = _union(list(parts.values()), image_size) if len(parts) > 1 else next(iter(parts.values()))
    return _with_labels(faces, table, f"--labels {labels}") if labels else faces


def _has_distinct(pixels: NDArray[np.uint8], count: int) -> bool:
    """Whether at least `count` of pictures (N, 3, S, S) differ; reads no more of them than it takes to know."""
    seen: set[bytes] = set()
    for picture in pixels:
        seen.add(hashlib.sha256(picture).digest())
        if len(seen) >= count:
            return True
    return False


def find_avatars(sha256: str, training_count: int) -> tuple[int, int] | None:
    """How many avatars a model was trained on, held-out ones included, and their seed; None for other data.

    sha256: the digest of its training data. training_count: the number of its training pictures.
    """
    low, high = training_count, int(training_count / (1 - HELD_OUT)) + 2
    wanted = ((count, seed) for seed in range(_SEEDS) for count in range(high, low - 1, -1))
    return next((found for found in wanted if _avatars_digest(*found) == sha256), None)


def _avatars_digest(count: int, seed: int) -> str:
    from vae_train.data.avatars import VERSION

    return hashlib.sha256(f"avatars {VERSION} {count} {seed}".encode()).hexdigest()


def _load(source: str, image_size: int, avatars: int, seed: int) -> Faces:
    if source == AVATARS:
        digest = _avatars_digest(avatars, seed)
        entry = cached(digest, image_size, lambda writer: _draw_into(writer, avatars, image_size, seed))
        return _faces(AVATARS, entry, digest)
    pictures = open_source(source)
    entry = cached(pictures.digest(), image_size, lambda writer: _decode_into(writer, pictures, image_size))
    digest = hashlib.sha256(b"pictures" + entry.keys.tobytes()).hexdigest()
    faces = _faces(pictures.name, entry, digest, pictures.legacy_digest())
    beside = table_beside(source)
    return _with_labels(faces, beside) if beside else faces


def _with_labels(faces: Faces, table: Table, required: str = "") -> Faces:
    """The same faces with the columns of a table as labels, beside or over their own.

    required: what the table is called in the DataError that is raised if it names none of the pictures.
    """
    columns, count = label_pictures(faces.names, [table])
    if required and not count:
        example = next(iter(table), "nothing")
        raise DataError(
            f"{required}: names none of the {len(faces)} pictures; got {example}, expected {faces.names[0]}"
        )
    labels, ignored = keep_labels(columns)
    return dataclasses.replace(faces, labels=faces.labels | labels, ignored=faces.ignored + ignored)


def _faces(name: str, entry: CacheEntry, sha256: str, legacy_sha256: str | None = None) -> Faces:
    return Faces(
        name=name,
        pixels=entry.pixels,
        keys=entry.keys,
        names=[f"{name}/{picture}" for picture in entry.names],
        labels=entry.labels,
        ignored=entry.ignored,
        sha256=sha256,
        unreadable=entry.unreadable,
        skipped=entry.skipped,
        legacy_sha256=legacy_sha256,
    )


def _union(parts: list[Faces], image_size: int) -> Faces:
    """Several sources as one, memory-mapped from an entry of its own beside theirs."""
    ordered = sorted(parts, key=lambda part: part.sha256)
    digest = hashlib.sha256("".join(["union", *(part.sha256 for part in ordered)]).encode()).hexdigest()

    def fill(writer: Writer) -> None:
        for part in ordered:
            writer.extend(part.names, part.pixels, part.keys)

    entry = cached(digest, image_size, fill)
    return Faces(
        name=" + ".join(part.name for part in parts),
        pixels=entry.pixels,
        keys=entry.keys,
        names=entry.names,
        labels=join_labels([(part.labels, len(part)) for part in ordered]),
        ignored=list(dict.fromkeys(line for part in ordered for line in part.ignored)),
        sha256=digest,
        unreadable=[f"{part.name}/{line}" for part in ordered for line in part.unreadable],
        skipped=[f"{part.name}/{line}" for part in ordered for line in part.skipped],
    )


def _decode_into(writer: Writer, pictures: PictureSource, image_size: int) -> None:
    def decode(data: bytes) -> Decoded:
        picture = load_image(data)
        return fit_square(picture, image_size), picture_key(picture)

    name = pictures.name
    total = None if pictures.archives else len(pictures.files)
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc=f"decoding {name}", **_bar()) as bar:
        for picture, task in _in_order(pool, decode, pictures):
            try:
                pixels, key = task.result()
            # Beside ImageError: what disks and archives say of a member, in the classes of zlib and lzma too.
            except Exception as error:
                reason = str(error).removeprefix("image: ") or type(error).__name__
                writer.unreadable.append(f"{picture}: {reason}")
            else:
                writer.add(picture, pixels, key)
            bar.update()
    writer.skipped += pictures.skipped
    columns, _ = label_pictures(writer.names, pictures.tables)
    writer.labels, writer.ignored = keep_labels(columns) if columns else (class_labels(writer.names), [])
    found = len(writer.names) + len(writer.unreadable)
    if found == 0:
        skipped = f" ({summarize(writer.skipped)})" if writer.skipped else ""
        raise DataError(f"{name}: no pictures in it{skipped}")
    if len(writer.unreadable) > MAX_UNREADABLE * found:
        raise DataError(
            f"{name}: {len(writer.unreadable)} of {found} pictures cannot be read, more than {MAX_UNREADABLE:.0%}; "
            f"repair or remove them: {'; '.join(writer.unreadable[:_SHOWN])}"
            + (f"; and {len(writer.unreadable) - _SHOWN} more" if len(writer.unreadable) > _SHOWN else "")
        )


def _in_order(
    pool: ThreadPoolExecutor, decode: Callable[[bytes], Decoded], pictures: Iterable[Picture]
) -> Iterator[tuple[str, Future[Decoded]]]:
    """Each picture in its order, a few dozen decoded ahead; the future raises what reading or decoding raised."""
    waiting: deque[tuple[str, Future[Decoded]]] = deque()
    for name, read in pictures:
        try:
            task = pool.submit(decode, read())
        except Exception as error:
            task = Future()
            task.set_exception(error)
        waiting.append((name, task))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def _bar() -> dict[str, Any]:
    """Settings of a progress bar, which is rarely updated where it goes into a log file."""
    return {"unit": "img", "mininterval": 0.2 if sys.stderr is not None and sys.stderr.isatty() else 10.0}


def _draw_into(writer: Writer, count: int, image_size: int, seed: int) -> None:
    from vae_train.data.avatars import draw_many

    faces = tqdm(draw_many(count, image_size, seed), total=count, desc="drawing avatars", **_bar())
    for index, (pixels, attributes) in enumerate(faces):
        writer.add(str(index), pixels, picture_key(pixels))
        for attribute, value in attributes.items():
            writer.labels.setdefault(attribute, []).append(value)
