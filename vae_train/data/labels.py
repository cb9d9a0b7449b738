"""Labels of pictures: attribute -> one value for each picture, None where it is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Labels: TypeAlias = dict[str, list[str | None]]
"""Attribute -> N values, None where a picture has no value."""


def join_labels(parts: Sequence[tuple[Labels, int]]) -> Labels:
    """The labels of several sets as those of one; parts: the labels and the number of pictures of each."""
    names = {name: None for labels, _ in parts for name in labels}
    return {name: [value for labels, count in parts for value in labels.get(name, [None] * count)] for name in names}
