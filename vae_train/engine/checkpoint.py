"""Checkpoints that survive kills, full disks and flipped bits: safetensors for the arrays, JSON for the rest.

`step-000001234.safetensors` holds the tensors, `step-000001234.json` the state and the SHA-256 of the tensors. Each is
written under a temporary name, flushed to the disk and renamed, the JSON last: without it a checkpoint does not count.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from vae_train.errors import CheckpointError, DamagedCheckpointError

FORMAT_VERSION = 2
KEEP = 3
"""Number of checkpoints that are kept."""

_unsynced: set[Path] = set()
_NAME = re.compile(r"step-(\d{9})\.json")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue exactly."""

    step: int
    """Number of optimizer steps."""
    state: dict[str, Any]
    """Plain JSON values."""
    tensors: dict[str, Tensor]
    """Weights, statistics and the optimizer's moments, on the CPU."""


def save(folder: Path, checkpoint: Checkpoint, keep: int = KEEP) -> Path:
    """Write a checkpoint, drop all but the last `keep`, and return the path of its JSON.

    Raises CheckpointError if it cannot be written; earlier checkpoints are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned: a view would drag its whole storage along, and safetensors refuses shared memory.
    data = tensors_to_bytes(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    )
    record = {
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "sha256": hashlib.sha256(data).hexdigest(),
        "state": checkpoint.state,
    }
    record["record_sha256"] = _record_digest(record)
    path = folder / f"step-{checkpoint.step:09d}.json"
    try:
        write(path.with_suffix(".safetensors"), data)
        write(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error}){_room(folder, len(data), error)}") from error
    # Newer ones are damaged, or this one would not have been written: they must not replace it.
    for old in [other for other in _newest_first(folder) if other <= path][keep:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return path


def _room(folder: Path, size: float, error: OSError) -> str:
    """Advice if the disk is full: how much space is missing."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    size, free = size / 1e6, shutil.disk_usage(folder).free / 1e6
    return (
        f"; it takes {size:.1f} MB, {free:.1f} MB are free: make {max(0.0, size - free):.1f} MB of room or more, and "
        "go on with --resume; the checkpoints before it are whole"
    )


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint of `folder`, and a sentence for each newer one that is damaged.

    None if the folder holds no checkpoint. Raises CheckpointError if it holds some and all are damaged, or as soon as
    one cannot be read for another reason: permissions, a failing disk, another format version. Such a checkpoint may be
    good, and training past it would lose it.
    """
    damaged: list[str] = []
    try:
        paths = list(_newest_first(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror or error}); nothing was changed") from error
    for path in paths:
        try:
            return load(path), damaged
        except DamagedCheckpointError as error:
            damaged.append(str(error))
    if damaged:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {folder} is good: {'; '.join(damaged)}; nothing was changed: "
            "restore them from a copy, or start a new run in another folder"
        )
    return None, damaged


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint, named by its .json or .safetensors.

    Raises DamagedCheckpointError if its content is wrong, CheckpointError if it cannot be read or has another
    format version.
    """
    path = path.with_suffix(".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        data = path.with_suffix(".safetensors").read_bytes()
        if record["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: checkpoint format {record['format_version']}, expected {FORMAT_VERSION}; use the version of "
                "this program that wrote it; nothing was changed"
            )
        if _record_digest(record) != record["record_sha256"]:
            raise DamagedCheckpointError(f"{path}: damaged, its SHA-256 differs from the recorded one")
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise DamagedCheckpointError(
                f"{path.with_suffix('.safetensors')}: damaged, its SHA-256 differs from the recorded one"
            )
        return Checkpoint(int(record["step"]), dict(record["state"]), tensors_from_bytes(data))
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path}: damaged, {Path(str(error.filename)).name} is missing") from error
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path}: cannot be read ({error.strerror or error}); nothing was changed: it may be a "
            "good checkpoint, make it readable first"
        ) from error
    except Exception as error:  # JSON, keys, and safetensors' own class
        raise DamagedCheckpointError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _record_digest(record: dict[str, Any]) -> str:
    noted = {key: value for key, value in record.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(noted, sort_keys=True).encode()).hexdigest()


def _newest_first(folder: Path) -> Iterator[Path]:
    """Checkpoints by the step in their names, not by modification time."""
    if folder.is_dir():
        yield from sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def write(path: Path, data: bytes) -> None:
    """Write a file atomically and flush it to the disk: a reader sees the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the rename itself must reach the disk too
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder to the disk; where the file system refuses (CIFS, DrvFs, FUSE), warn once and continue."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
        if folder not in _unsynced:
            print(
                f"warning: {folder}: this disk cannot flush folders ({error.strerror}); going on: a power failure may "
                "cost the newest checkpoint",
                file=sys.stderr,
            )
        _unsynced.add(folder)
