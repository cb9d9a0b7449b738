from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vae_train.config import TrainConfig
from vae_train.engine import device
from vae_train.engine import loader as module
from vae_train.engine.device import free_memory
from vae_train.engine.distributed import SINGLE_PROCESS, DistributedContext
from vae_train.engine.loader import Loader, augment
from vae_train.model.tensors import to_unit

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=8, flip=True)


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (70, 3, 32, 32), np.uint8)


@pytest.fixture
def chosen():
    return np.flatnonzero(np.arange(70) % 7)  # 60: seven batches, four left over


def batches(loader: Loader, epoch: int, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(pixels.clone(), views.clone()) for pixels, views in loader.epoch(epoch, first)]


def assert_equal(one: list, other: list) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def numbers(pixels: np.ndarray, batch: torch.Tensor) -> list[int]:
    """Which pictures a batch holds."""
    return [int(np.flatnonzero((pixels == face.numpy()).all((1, 2, 3)))[0]) for face in batch]


def test_an_epoch_holds_each_chosen_picture_at_most_once(pixels, chosen):
    loader = Loader(pixels, chosen, CONFIG, CPU, SINGLE_PROCESS)
    seen = [n for batch, _ in batches(loader, 0) for n in numbers(pixels, batch)]
    assert loader.batches == 7
    assert len(seen) == len(set(seen)) == 56
    assert set(seen) <= set(chosen.tolist())


def test_order_and_mirroring_depend_on_seed_and_epoch_alone(pixels, chosen):
    loader = Loader(pixels, chosen, CONFIG, CPU, SINGLE_PROCESS)
    whole = batches(loader, 3)
    assert_equal(whole, batches(loader, 3))
    assert_equal(whole[4:], batches(loader, 3, first=4))
    assert not torch.equal(whole[0][0], batches(loader, 4)[0][0])
    other = Loader(pixels, chosen, dataclasses.replace(CONFIG, seed=1), CPU, SINGLE_PROCESS)
    assert not torch.equal(whole[0][0], batches(other, 3)[0][0])
    views = torch.cat([views for _, views in whole])
    assert 0.2 < views[:, 0].float().mean() < 0.8
    assert not views[:, 1:].any()
    plain = Loader(pixels, chosen, dataclasses.replace(CONFIG, flip=False), CPU, SINGLE_PROCESS)
    assert not any(views.any() for _, views in batches(plain, 3))
    moving = Loader(pixels, chosen, dataclasses.replace(CONFIG, shift=2), CPU, SINGLE_PROCESS)
    moved = torch.cat([views for _, views in batches(moving, 3)])
    assert torch.equal(moved[:, 0], views[:, 0])
    assert sorted(moved[:, 1:].unique().tolist()) == [-2, -1, 0, 1, 2]


def test_a_set_that_is_too_large_is_streamed_with_the_same_batches(pixels, chosen, monkeypatch):
    resident = Loader(pixels, chosen, CONFIG, CPU, SINGLE_PROCESS)
    assert "in memory" in resident.report
    monkeypatch.setattr(module, "free_memory", lambda device: 2 * 60 * 3072 - 1.0)
    streamed = Loader(pixels, chosen, CONFIG, CPU, SINGLE_PROCESS)
    assert streamed.resident is None
    assert "streaming from the cache" in streamed.report
    assert_equal(batches(resident, 2), batches(streamed, 2))
    assert_equal(batches(resident, 2, first=5), batches(streamed, 2, first=5))
    assert batches(streamed, 2, first=7) == []


def test_a_stream_may_be_left_early(pixels, chosen, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 0.0)
    loader = Loader(pixels, chosen, CONFIG, CPU, SINGLE_PROCESS)
    for _ in loader.epoch(0, 0):
        break


def test_the_shares_of_many_processes_are_the_batch_of_one(pixels, chosen):
    whole = batches(Loader(pixels, chosen, CONFIG, CPU, SINGLE_PROCESS), 1)
    shares = [batches(Loader(pixels, chosen, CONFIG, CPU, DistributedContext(rank, 4)), 1) for rank in range(4)]
    for number, (batch, views) in enumerate(whole):
        assert torch.equal(batch, torch.cat([share[number][0] for share in shares]))
        assert torch.equal(views, torch.cat([share[number][1] for share in shares]))


def test_views_mirror_and_move_with_repeated_edges(pixels):
    """Oracle: NumPy's edge padding, cut where the picture has moved to."""
    views = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 2, -1], [1, -2, 2], [1, 1, 0]])
    seen = augment(torch.from_numpy(pixels[:5]), views)
    assert torch.equal(seen[0], torch.from_numpy(pixels[0]))
    for face, (mirrored, down, right), found in zip(pixels, views.tolist(), seen, strict=False):
        face = face[:, :, ::-1] if mirrored else face
        padded = np.pad(face, ((0, 0), (2, 2), (2, 2)), mode="edge")
        np.testing.assert_array_equal(found, padded[:, 2 - down : 34 - down, 2 - right : 34 - right])


def test_the_free_memory_is_that_of_the_control_group_if_it_is_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    machine = free_memory(CPU)
    assert machine > 1e6
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert free_memory(CPU) == 1e6
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU) > 1e6


def test_pixels_become_numbers_between_0_and_1():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    unit = to_unit(pixels)
    assert torch.equal(unit, pixels.double().div(255).float())
    assert unit.is_contiguous(memory_format=torch.channels_last)
