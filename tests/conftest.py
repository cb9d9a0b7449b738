"""Fixtures for all tests."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import LinearModel, build_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1234)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("ANIME_VAE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
