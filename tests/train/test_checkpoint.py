from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint, load, load_latest, save
from vae_train.errors import CheckpointError


def sample(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(16, 3, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    tensors = {"model.w": weights, "sums": torch.tensor([1.5, step], dtype=torch.float64), "count": torch.tensor(step)}
    return Checkpoint(step, {"epoch": step, "data": {"name": "faces"}}, tensors)


def assert_equal(got: Checkpoint | None, wanted: Checkpoint) -> None:
    assert got is not None
    assert (got.step, got.state) == (wanted.step, wanted.state)
    assert got.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)


def test_round_trip_keeps_every_bit(tmp_path):
    path = save(tmp_path, sample(7))
    assert_equal(load(path), sample(7))
    assert_equal(load(path.with_suffix(".safetensors")), sample(7))


def test_the_last_three_stay(tmp_path):
    for step in (1, 2, 10, 9, 100):
        save(tmp_path, sample(step))
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [f"step-{n:09d}.json" for n in (9, 10, 100)]
    assert len(list(tmp_path.iterdir())) == 6
    assert_equal(load_latest(tmp_path)[0], sample(100))


def test_a_slice_does_not_drag_its_storage_along(tmp_path):
    big = torch.zeros(1_000_000)
    path = save(tmp_path, Checkpoint(1, {}, {"slice": big[:10]}))
    assert path.with_suffix(".safetensors").stat().st_size < 1000


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "text", "remove"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, suffix, damage):
    save(tmp_path, sample(1))
    path = save(tmp_path, sample(2)).with_suffix(suffix)
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 64
        path.write_bytes({"flip": bytes(flipped), "truncate": data[:-5], "empty": b"", "text": b"hello"}[damage])
    found, damaged = load_latest(tmp_path)
    assert_equal(found, sample(1))
    if not (suffix == ".json" and damage == "remove"):
        assert len(damaged) == 1
        assert "step-000000002" in damaged[0]


def test_every_flipped_byte_is_seen(tmp_path):
    """A flip in the JSON, too: where it leaves the same meaning (white space), the checkpoint is as it was."""
    path = save(tmp_path, sample(3))
    for target in (path, path.with_suffix(".safetensors")):
        data = target.read_bytes()
        for place in range(0, len(data), 29):
            target.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            try:
                found = load(path)
            except CheckpointError:
                continue
            assert target == path
            assert_equal(found, sample(3))
        target.write_bytes(data)


def test_leftovers_of_a_kill_do_not_count(tmp_path):
    save(tmp_path, sample(1))
    (tmp_path / "step-000000009.json.tmp").write_text("{}")
    (tmp_path / "step-000000009.safetensors").write_bytes(b"written, but its JSON was not")
    assert_equal(load_latest(tmp_path)[0], sample(1))
    assert load_latest(tmp_path / "nothing") == (None, [])


def test_other_formats_are_refused(tmp_path):
    path = save(tmp_path, sample(1))
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load(path)


@pytest.mark.parametrize("failing", ["open", "fsync", "replace"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, failing):
    save(tmp_path, sample(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    targets = {
        "open": (checkpoint.Path, "open"),
        "fsync": (checkpoint.os, "fsync"),
        "replace": (checkpoint.Path, "replace"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*targets[failing], full)
        patch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000))
        big = Checkpoint(2, {}, {"weights": torch.zeros(500_000)})
        with pytest.raises(
            CheckpointError, match=r"No space left.*takes 2\.0 MB, 0\.5 MB are free: make 1\.5 MB of room"
        ):
            save(tmp_path, big)
    assert_equal(load_latest(tmp_path)[0], sample(1))
    assert not list(tmp_path.glob("*.tmp"))
