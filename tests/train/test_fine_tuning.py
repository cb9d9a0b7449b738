"""Runs that start from a model: python -m vae_train --init."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vae_runtime.config import ModelConfig
from vae_train.__main__ import main
from vae_train.config import FINE_TUNING, fine_tuning_length, make_config
from vae_train.engine.initial import load_initial
from vae_train.engine.runs import load_checkpoint
from vae_train.engine.train import train
from vae_train.errors import UsageError
from vae_train.model.networks import VAE

CPU = torch.device("cpu")
EXPORTED = Path(__file__).parents[2] / "exported"


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_a_model(faces_zip, tmp_path):
    """At a learning rate of nothing, an epoch from an exported model, and one from that run, end with its weights."""
    init, network = str(EXPORTED / "anime-32"), load_initial(str(EXPORTED / "anime-32"))[1]
    for name in ("first", "second"):
        given = {"data": (str(faces_zip),), "init": init, "epochs": 1, "batch_size": 50, "learning_rate": 1e-8}
        train(make_config(given, load_initial(init)[0]), tmp_path / name, CPU)
        tuned = load_checkpoint(tmp_path / name).tensors
        for parameter, value in network.named_parameters():
            assert torch.allclose(tuned[f"average.{parameter}"], value, atol=1e-5), parameter
        init = str(tmp_path / name)


def test_its_sizes_are_the_models_and_its_length_follows_the_pictures():
    initial = {"preset": "base", "image_size": 64, "latent_dim": 512, "decoder": "fine", "batch_norm": False}
    config = make_config({"init": "model", "shift": 0}, initial | {"likelihood": "gaussian", "beta": 1.0})
    assert (config.image_size, config.latent_dim, config.decoder, config.batch_norm) == (64, 512, "fine", False)
    assert (config.learning_rate, config.shift) == (FINE_TUNING["learning_rate"], 0)
    lengths = [fine_tuning_length(count) for count in (8, 30, 300, 3000, 30000)]
    assert [length["epochs"] for length in lengths] == [100, 100, 67, 7, 3]
    assert all(2 <= length["batch_size"] <= 32 and length["patience"] < length["epochs"] + 1 for length in lengths)
    with pytest.raises(UsageError, match="--latent-dim 16"):
        make_config({"init": "model", "latent_dim": 16}, initial)


def test_a_plain_decoder_becomes_a_fine_one(monkeypatch):
    exported = str(EXPORTED / "avatars-64")
    plain = ModelConfig.load(EXPORTED / "avatars-64"), VAE(64, 128, "base", batch_norm=False)
    monkeypatch.setattr("vae_train.engine.initial.load_exported", lambda _: plain)
    settings, network = load_initial(exported, "fine", seed=1)
    assert (settings["decoder"], settings["batch_norm"], network.decoder_kind) == ("fine", False, "fine")
    assert make_config({"init": exported, "decoder": "fine"}, settings).decoder == "fine"
    last = [load_initial(exported, "fine", seed)[1].decoder.layers[-2].weight for seed in (1, 2)]
    assert torch.equal(last[0], network.decoder.layers[-2].weight)
    assert not torch.equal(*last)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--decoder"):
        load_initial(str(EXPORTED / "anime-32"), "fine")


@pytest.mark.parametrize(
    "options",
    [["--init", "nowhere"], ["--init", str(EXPORTED / "anime-32"), "--image-size", "64"], ["--init", __file__]],
)
def test_a_start_that_cannot_be_is_one_sentence(faces_zip, tmp_path, options, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--data", str(faces_zip), "--out", str(tmp_path / "run"), *options])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
