"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from tiny_model import LinearModel, build_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1234)


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """No file of a test must survive a power failure, and a busy disk takes seconds to flush one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("ANIME_VAE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
