from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from blobs import write_faces

from vae_train.__main__ import main
from vae_train.config import TrainConfig
from vae_train.errors import DataError
from vae_train.evaluate import as_table, evaluate, open_model, pictures_of
from vae_train.export import export
from vae_train.train import read_metrics, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(faces_zip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(TrainConfig(data=str(faces_zip), epochs=2, batch_size=50, latent_dim=16), folder, CPU)
    export(folder, folder / "exported")
    return folder


def test_a_run_and_its_export_agree(run, faces_zip):
    torch_model, player = open_model(run, CPU), open_model(run / "exported", CPU)
    _, pixels, which = pictures_of(torch_model, str(faces_zip))
    assert (which, len(pixels)) == ("held out", 11)
    one, other = evaluate(torch_model, pixels), evaluate(player, pixels)
    assert one.keys() == other.keys()
    for name, value in one.items():
        # A rounded pixel may fall to the other side, so distances of uint8 pictures agree less closely.
        np.testing.assert_allclose(other[name], value, atol=1e-3, rtol=5e-3 if name.startswith("swd") else 1e-5)


def test_the_figures_are_those_of_training(run, faces_zip):
    """The same weights, pictures and formulas, but for the draw of z."""
    model = open_model(run, CPU)
    figures = evaluate(model, pictures_of(model, str(faces_zip))[1])
    logged = read_metrics(run)[-1]
    assert figures["psnr"] == pytest.approx(logged["held_out_psnr"], abs=1e-3)
    assert figures["kl"] == pytest.approx(logged["held_out_kl"], rel=1e-4)
    assert figures["active_units"] == logged["held_out_active_units"]
    assert figures["reconstruction"] == pytest.approx(logged["held_out_reconstruction"], rel=0.05)
    assert sum(figures["kl_per_latent"]) == pytest.approx(figures["kl"], abs=1e-4)
    assert figures["importance_bound"] <= figures["negative_elbo"] * 1.02


def test_other_pictures_are_measured_whole(run, tmp_path):
    other = write_faces(tmp_path / "other.zip", 30)
    model = open_model(run, CPU)
    _, pixels, which = pictures_of(model, str(other))
    assert (which, len(pixels)) == ("all", 30)
    with pytest.raises(DataError, match="at least 2"):
        evaluate(model, pixels[:1])


def test_the_command(run, faces_zip, tmp_path, capsys):
    target = tmp_path / "figures.json"
    arguments = ["evaluate", str(run / "exported"), "--data", str(faces_zip), "--json", str(target)]
    assert main([*arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for name in ("negative_elbo", "bits_per_dim", "importance_bound", "ssim", "active_units", "swd_samples"):
        assert name in printed
    figures = json.loads(target.read_text())
    assert figures["which"] == "held out"
    assert len(figures["kl_per_latent"]) == 16
    assert all(math.isfinite(value) for value in figures.values() if isinstance(value, float))


def test_the_table_has_units():
    table = as_table({"kl": 3.25, "images": 7, "kl_per_latent": [1]}, "m on d")
    assert table.splitlines() == ["m on d", "kl                 3.2500 nats", "images                  7"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing", "--data", "avatars"],
        [".", "--data", "avatars"],
        [".", "--data", "missing/"],
        ["."],
        [".", "--data", "avatars", "--json", "x.txt"],
    ],
)
def test_bad_command_lines(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
