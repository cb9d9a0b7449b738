"""Atomic writes."""

from __future__ import annotations

import errno
import os

import pytest

from vae_runtime.files import atomic_path, write_atomically


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "none" / "x.png", b"")
    assert caught.value.filename == str(tmp_path / "none" / "x.png")
    path = tmp_path / "x.png"
    with pytest.raises(OSError, match=r"x\.png") as full, atomic_path(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="another"), atomic_path(path):
        raise FileNotFoundError(errno.ENOENT, "gone", "another")
    assert list(tmp_path.iterdir()) == []
