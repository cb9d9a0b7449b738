from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from blobs import write_faces

from vae_train.__main__ import main
from vae_train.config import TrainConfig
from vae_train.data.faces import find_avatars, load_faces
from vae_train.engine.logger import read_metrics
from vae_train.engine.train import train
from vae_train.errors import DataError
from vae_train.evaluation.evaluate import Autoencoder, as_table, evaluate, open_model, pictures_of, restorations
from vae_train.evaluation.restoration import hidden_quarter, psnrs
from vae_train.export.export import export

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["mse", pytest.param("gaussian", marks=pytest.mark.slow)])
def run(config, finished, exported, tmp_path_factory, request):
    """A run with its exported model in it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    if request.param == config.likelihood:
        shutil.copytree(finished, folder)
        shutil.copytree(exported, folder / "exported")
    else:
        train(dataclasses.replace(config, likelihood=request.param), folder, CPU)
        export(folder, folder / "exported")
    return folder


def test_avatars_are_known_again_by_their_number():
    faces = load_faces("avatars", 32, 80)
    model = Autoencoder("a", 32, 4, "mse", 1.0, faces.sha256, lambda image: (image, image), lambda z: z, None)
    assert pictures_of(model, "avatars", 80)[2] == "held out"
    assert pictures_of(model, "avatars", 90)[2] == "all"


@pytest.mark.parametrize(("count", "seed"), [(80, 0), (90, 3)])
def test_avatars_of_another_number_or_seed_are_found_by_their_digest(count, seed):
    """An exported model knows only the digest and the number of its training pictures."""
    faces = load_faces("avatars", 32, count, seed)
    training = int((~faces.held_out()).sum())
    assert find_avatars(faces.sha256, training) == (count, seed)
    assert find_avatars("0" * 64, training) is None
    model = Autoencoder("a", 32, 4, "mse", 1.0, faces.sha256, None, None, None, data_count=training)
    found, pixels, which = pictures_of(model, "avatars")
    assert (found.sha256, which, len(pixels)) == (faces.sha256, "held out", count - training)


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
    assert figures["squared_error"] == pytest.approx(logged["held_out_squared_error"], rel=0.05)
    if model.likelihood == "gaussian":
        nats = figures["reconstruction"] + figures["kl"]
        assert figures["bits_per_dim"] == pytest.approx(nats / (3072 * math.log(2)) + 8, abs=1e-6)
    assert sum(figures["kl_per_latent"]) == pytest.approx(figures["kl"], abs=1e-4)
    assert figures["importance_bound"] <= figures["negative_elbo"] + 0.02 * abs(figures["negative_elbo"])


def test_other_pictures_are_measured_whole(run, tmp_path):
    other = write_faces(tmp_path / "other.zip", 30)
    model = open_model(run, CPU)
    _, pixels, which = pictures_of(model, str(other))
    assert (which, len(pixels)) == ("all", 30)
    with pytest.raises(DataError, match="at least 2"):
        evaluate(model, pixels[:1])


def test_the_command(run, faces_zip, tmp_path, capsys):
    target = tmp_path / "figures.json"
    arguments = ["evaluate", str(run / "exported"), "--data", str(faces_zip), "--json", str(target), "--card"]
    card = (run / "exported" / "README.md").read_text()
    assert main([*arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for name in ("negative_elbo", "bits_per_dim", "importance_bound", "ssim", "active_units", "swd_samples"):
        assert name in printed
    figures = json.loads(target.read_text())
    assert figures["which"] == "held out"
    assert len(figures["kl_per_latent"]) == 16
    assert all(math.isfinite(value) for value in figures.values() if isinstance(value, float))
    written = (run / "exported" / "README.md").read_text()
    assert written.startswith(card.rstrip())
    assert f"| PSNR of decode(mu), dB | {figures['psnr']:.2f} |" in written


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
        [".", "--data", "avatars", "--card"],
    ],
)
def test_bad_command_lines(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_restorations_are_measured_and_drawn(run, faces_zip, tmp_path):
    _, pixels, _ = pictures_of(open_model(run / "exported", CPU), str(faces_zip))
    found = restorations(run / "exported", pixels[:3], tmp_path / "restorations.png")
    assert found["psnr of inverted"] > found["psnr of decode(mu)"]
    assert found["psnr of inpainted"] > found["psnr of hole: mean"]
    assert found["psnr of denoised"] > found["psnr of noisy: decode(mu)"]
    whole = evaluate(open_model(run / "exported", CPU), pixels[:3])["bits_per_dim"]
    assert found["bits_per_dim of decode(mu)"] == pytest.approx(whole, abs=1e-6)
    if TrainConfig.load(run).likelihood == "gaussian":
        assert found["bits_per_dim of inverted"] < found["bits_per_dim of decode(mu)"]
    assert (tmp_path / "restorations.png").read_bytes().startswith(b"\x89PNG")
    assert "psnr of inverted" in as_table(found, "blobs")


def test_a_hole_is_measured_in_the_hole():
    """Errors of 51 of 255 in the hole, none elsewhere: 20 log10(5) dB there, and a quarter of it in the whole."""
    original = np.full((2, 8, 8, 3), 100, np.uint8)
    wrong = np.where(hidden_quarter(8)[..., None], np.uint8(151), original)
    found = psnrs({"original": original, "inpainted": wrong, "inverted": wrong})
    assert found["inpainted"] == pytest.approx(20 * math.log10(5))
    assert found["inverted"] == pytest.approx(20 * math.log10(5) + 10 * math.log10(4))


@pytest.mark.parametrize("options", [["--figure", "f.png"], ["--inverse", "3"]])
def test_restorations_that_cannot_be(run, faces_zip, options, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(run), "--data", str(faces_zip), *options])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {options[0]}: ")
