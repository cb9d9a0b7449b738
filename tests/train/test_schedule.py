from __future__ import annotations

import pytest
import torch

from vae_train.engine.schedule import average_weight, kl_weight, learning_rate


def test_the_kl_weight_grows_evenly_to_one():
    assert [kl_weight(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert kl_weight(0, 0) == 1.0


def test_constant_after_the_warm_up():
    assert [learning_rate(step, 9, 0.2, 4, "constant") for step in range(6)] == pytest.approx(
        [0.05, 0.1, 0.15, 0.2, 0.2, 0.2]
    )


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert learning_rate(step + 5, 25, 0.3, 5, "cosine") == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert learning_rate(25, 25, 0.3, 5, "cosine") == pytest.approx(0)


def test_a_warm_up_longer_than_the_run():
    assert learning_rate(9, 10, 1.0, 100, "cosine") == pytest.approx(0.1)


def test_the_average_forgets_the_first_weights_and_keeps_its_decay():
    assert average_weight(0, 0.999) == 1.0
    assert average_weight(1, 0.999) == pytest.approx(1 - 2 / 11)
    assert average_weight(1_000_000, 0.999) == pytest.approx(0.001)
    assert average_weight(5, 0.0) == 1.0
