"""What objects with threads and locks must do in a forked child."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """An object whose threads or locks do not survive os.fork()."""

    def _after_fork(self) -> None: ...


_objects: weakref.WeakSet[Forked] = weakref.WeakSet()


def reset_in_children(item: Forked) -> None:
    """Call `_after_fork` of an object in each forked child, before anything else runs there."""
    _objects.add(item)


def _after_fork() -> None:
    for item in list(_objects):
        item._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
