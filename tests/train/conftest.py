"""The trainer's tests need the extra `train`; without it they are left out, and those of the runtime pass."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blobs import write_faces

if TYPE_CHECKING:
    from vae_train.config import TrainConfig

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session")
def faces_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces") / "blobs.zip", 220)


@pytest.fixture(scope="session")
def config(faces_zip: Path) -> TrainConfig:
    """The settings of `finished`."""
    from vae_train.config import TrainConfig

    return TrainConfig(data=str(faces_zip), epochs=3, batch_size=50, latent_dim=16)


@pytest.fixture(scope="session")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted; shared, so tests change a copy."""
    import torch

    from vae_train.engine.train import train

    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config, folder, torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model of `finished`; shared, so tests change a copy."""
    from vae_train.export.export import export

    folder = tmp_path_factory.mktemp("out") / "deep" / "model"
    export(finished, folder)
    return folder
