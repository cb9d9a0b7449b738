"""Labels of pictures, as tables and as folders of classes.

Read are `metadata.csv` and `metadata.jsonl` with a column `file_name`, the convention of Hugging Face's ImageFolder,
inside a source or beside it, and a file of the same form that is named on the command line. Without a table,
sub-folders of one class each are one label. A column of few different values becomes a label, any other is ignored.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from vae_runtime.errors import VAEError
from vae_train.errors import DataError, UsageError

Labels: TypeAlias = dict[str, list[str | None]]
"""Attribute -> N values, None where a picture has no value."""
Table: TypeAlias = dict[str, dict[str, str]]
"""Name of a picture -> column -> value; missing values are left out."""

FILE_NAME = "file_name"
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
CLASS = "label"
"""The attribute that sub-folders of one class each become, as in Hugging Face's ImageFolder."""
MAX_VALUES = 64
"""Maximum number of distinct values of a label."""
MIN_SHARE = 2
"""Minimum mean number of pictures per value: names and numbers of single pictures are not labels."""


def parse_table(name: str, data: bytes, folder: str = "") -> Table:
    """The table in the bytes of a .csv or .jsonl file; DataError if it is not one with a column file_name.

    folder: the one that file names are relative to, within the source, with a slash at its end.
    """
    try:
        rows = list((_jsonl_rows if name.endswith(".jsonl") else _csv_rows)(data.decode("utf-8-sig")))
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{name}: not a readable table ({error})") from error
    return {folder + str(row[FILE_NAME]): _values(row) for row in rows if row.get(FILE_NAME)}


def read_labels(path: Path) -> Table:
    """The table of a file that was named by the user; UsageError if it cannot be read or is no table."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(f"--labels {path}: expected a .csv or .jsonl file")
    try:
        return parse_table(path.name.lower(), path.read_bytes())
    except OSError as error:
        raise UsageError(f"--labels {path}: cannot be read ({error.strerror})") from error
    except VAEError as error:
        raise UsageError(f"--labels {error}") from error


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if FILE_NAME not in (reader.fieldnames or ()):
        columns = ", ".join((reader.fieldnames or ["nothing"])[:10])
        raise ValueError(f"expected a column {FILE_NAME} with the names of the pictures, got {columns}")
    yield from reader


def _jsonl_rows(text: str) -> Iterator[dict[str, Any]]:
    # Not splitlines, which also cuts at U+2028 and others that a text in JSON may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict) or FILE_NAME not in row:
                raise ValueError(f"line {number}: expected an object with {FILE_NAME}, the name of the picture")
            yield row


def _values(row: dict[Any, Any]) -> dict[str, str]:
    found = {}
    for column, value in row.items():
        if isinstance(column, str) and column != FILE_NAME and value is not None:  # csv: None for surplus fields
            text = " ".join(value.split()) if isinstance(value, str) else json.dumps(value)
            if text:
                found[column.strip()] = text
    return found


def label_pictures(names: Sequence[str], tables: Iterable[Table]) -> tuple[Labels, int]:
    """Every column of the tables as N values, and the number of pictures that a table names.

    A row belongs to a picture if its file name is the picture's, or the end of it ("0.png" for "train/0.png") and of
    no other picture's.
    """
    ends = Counter(end for name in names for end in _ends(name))
    labels: Labels = {}
    named: set[int] = set()
    for table in tables:
        for index, name in enumerate(names):
            row = next((table[end] for end in _ends(name) if end in table and (end == name or ends[end] == 1)), None)
            if row is None:
                continue
            named.add(index)
            for column, value in row.items():
                labels.setdefault(column, [None] * len(names))[index] = value
    return labels, len(named)


def _ends(name: str) -> Iterator[str]:
    """ "a/b/c.png", "b/c.png", "c.png" """
    yield name
    while "/" in name:
        name = name.partition("/")[2]
        yield name


def keep_labels(columns: Labels) -> tuple[Labels, list[str]]:
    """The printable columns of few different values, and `column: reason` of each other one."""
    kept: Labels = {}
    ignored = []
    for column, values in columns.items():
        known = [value for value in values if value is not None]
        distinct = len(set(known))
        if not "".join([column, *known]).isprintable():
            ignored.append(f"{column}: the name or a value is not printable")
        elif 2 <= distinct <= min(MAX_VALUES, len(known) // MIN_SHARE):
            kept[column] = values
        else:
            ignored.append(f"{column}: {distinct} different value{'s' * (distinct != 1)} in {len(known)} pictures")
    return kept, ignored


def class_labels(names: Sequence[str]) -> Labels:
    """The folder of each picture as its class, if all pictures lie in sub-folders and there are few of these."""
    if not all("/" in name for name in names):
        return {}
    return keep_labels({CLASS: [name.split("/")[-2] for name in names]})[0]


def join_labels(parts: Sequence[tuple[Labels, int]]) -> Labels:
    """The labels of several sets as those of one; parts: the labels and the number of pictures of each."""
    names = {name: None for labels, _ in parts for name in labels}
    return {name: [value for labels, count in parts for value in labels.get(name, [None] * count)] for name in names}


def avatar_labels(attributes: Labels) -> Labels:
    """The attributes of drawn avatars as columns that show: whether there are glasses, a beard, a hat; two colors."""
    switches = {name: attributes[name] for name in ("glasses", "beard", "hat") if name in attributes}
    colors = {"hair": attributes.get("hair_color"), "skin": attributes.get("skin")}
    shown: Labels = {
        name: [None if value is None else str(value != "NONE").lower() for value in values]
        for name, values in switches.items()
    }
    return shown | {name: values for name, values in colors.items() if values is not None}
