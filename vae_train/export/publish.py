"""An exported folder is put into place whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vae_runtime.config import (
    ATTRIBUTES_FILE,
    CARD_FILE,
    CONFIG_FILE,
    DECODER_FILE,
    DIRECTIONS_FILE,
    ENCODER_FILE,
    GOLDEN_FILE,
    INVERSE_FILE,
    NEIGHBORS_FILE,
    PRIOR_FILE,
    VARIANTS,
    graph_files,
)
from vae_train.errors import ExportError, UsageError
from vae_train.export.model_card import CARD_FIGURES

EXPORT_FILES = {
    *(ENCODER_FILE, DECODER_FILE, INVERSE_FILE, PRIOR_FILE, DIRECTIONS_FILE),
    *(ATTRIBUTES_FILE, NEIGHBORS_FILE),
    *(GOLDEN_FILE, CONFIG_FILE, CARD_FILE),
    *CARD_FIGURES,
    *(file for variant in VARIANTS for file in graph_files(variant)),
}
"""Every file that an export may write; a folder that holds others is not replaced."""


def check_target(out: Path) -> None:
    """Raise UsageError unless `out` is free, empty, or holds nothing but an earlier export, which may be replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: not a folder")
    if out.is_dir() and (others := {path.name for path in out.iterdir()} - EXPORT_FILES):
        raise UsageError(f"--out {out}: holds other files ({', '.join(sorted(others)[:3])}); give a new folder")


@contextmanager
def replacement(out: Path) -> Iterator[Path]:
    """A new, empty folder that becomes `out` when the block ends without an error; else `out` stays as it was."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        yield folder
        _move_into_place(folder, out, Path(temporary) / "replaced")


def _move_into_place(folder: Path, out: Path, replaced: Path) -> None:
    """Rename `folder` to `out`; an earlier export is moved to `replaced`, and back if the renaming fails."""
    folder.chmod(0o777 & ~_umask())
    try:
        if out.exists():
            out.rename(replaced)
        folder.rename(out)
    except OSError as error:
        if replaced.exists():
            replaced.rename(out)
        raise ExportError(f"--out {out}: cannot be written ({error.strerror})") from error
    shutil.rmtree(replaced, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
