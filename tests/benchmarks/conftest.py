"""Fixtures for the instruments."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from benchmarks import runtimes


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of each batch is enough where nothing is measured."""
    monkeypatch.setattr(runtimes, "_TIMED", 1e-9)
