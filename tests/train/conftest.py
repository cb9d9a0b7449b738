"""The trainer's tests need the extra `train`; without it they are left out, and those of the runtime pass."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from blobs import write_faces

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session")
def faces_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces") / "blobs.zip", 220)
