from __future__ import annotations

import json
from pathlib import Path

import pytest

from vae_train.engine import logger as module
from vae_train.engine.logger import EVENTS, METRICS_FILE, Logger, read_metrics


def record(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch, "train_negative_elbo": 100.0 / epoch, "held_out_psnr": 20.0 + epoch}


def test_a_line_an_epoch(tmp_path):
    log = Logger(tmp_path, [], tensorboard=False)
    for epoch in (1, 2, 3):
        log.add(record(epoch))
        assert read_metrics(tmp_path) == [record(n) for n in range(1, epoch + 1)]
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_a_resumed_log_keeps_what_it_is_given(tmp_path):
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(record(n)) + "\n" for n in (1, 2, 3)) + '{"epo')
    assert len(read_metrics(tmp_path)) == 3
    log = Logger(tmp_path, [record(1)], tensorboard=False)
    assert read_metrics(tmp_path) == [record(1)]
    log.add(record(2))
    assert read_metrics(tmp_path) == [record(1), record(2)]


@pytest.mark.parametrize("failing", ["open", "write_text", "replace"])
def test_a_disk_that_refuses_the_log_does_not_stop_the_run(tmp_path, monkeypatch, capsys, failing):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    log = Logger(tmp_path, [], tensorboard=False)
    if failing == "open":
        log.add(record(1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, full)
        log.add(record(len(log.records) + 1))
        log.add(record(len(log.records) + 1))
    assert capsys.readouterr().err.count("No space left") == 1
    log.add(record(len(log.records) + 1))
    assert read_metrics(tmp_path) == log.records
    assert len(log.records) >= 3


def test_tensorboard_shows_the_same_figures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = Logger(tmp_path, [], tensorboard=True)
    log.add(record(1))
    log.add(record(2))
    log.close()
    resumed = Logger(tmp_path, [record(1)], tensorboard=True)  # epoch 2 was not kept, and is run again
    resumed.add(record(2) | {"held_out_psnr": 30.0})
    resumed.close()
    events = accumulator.EventAccumulator(str(tmp_path / EVENTS)).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("held_out/psnr")]
    assert shown == [(1, 21.0), (2, 30.0)]
    assert "train/negative_elbo" in events.Tags()["scalars"]


def test_the_events_are_named_by_part(tmp_path):
    assert module.tag("held_out_bits_per_dim") == "held_out/bits_per_dim"
    assert module.tag("train_kl") == "train/kl"
    assert module.tag("images_per_second") == "images_per_second"
