"""Fixtures for the instruments, which need torch and onnx."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # blocked in sys.modules
        return False


collect_ignore_glob = [] if _is_installed("torch") and _is_installed("onnx") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of each batch is enough where nothing is measured."""
    monkeypatch.setattr("benchmarks.runtimes._TIMED", 1e-9)
