from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from vae_train.__main__ import main
from vae_train.config import TrainConfig
from vae_train.engine.train import train
from vae_train.evaluation.amortization_gap import amortization_gap, fit_posteriors
from vae_train.model.losses import kl_divergence

CPU = torch.device("cpu")


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_a_linear_decoder_has_its_best_code_in_closed_form(beta):
    """x = W z + noise: mu is the posterior's mean, and the best diagonal variance the inverse of its precision's
    diagonal (Bishop 2006, equations 2.116 and 10.13), the prior weighed beta times."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(3 * 4 * 4, 6, generator=generator, dtype=torch.float64) / 4
    image = torch.rand(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    variance = 0.04
    precision = weights.T @ weights / variance + beta * torch.eye(6, dtype=torch.float64)
    best_mu = (image.flatten(1) @ weights / variance) @ torch.linalg.inv(precision)
    best_logvar = math.log(beta) - precision.diagonal().log()

    def decoder(z):
        return (z @ weights.T.to(z)).unflatten(1, (3, 4, 4))

    def loss(mu, logvar):
        error = (image - decoder(mu.double())).square().sum((1, 2, 3)) + logvar.double().exp() @ weights.square().sum(0)
        return (error / (2 * variance) + beta * kl_divergence(mu.double(), logvar.double())).mean().item()

    zeros = torch.zeros(5, 6)
    mu, logvar = fit_posteriors(decoder, image.float(), zeros, zeros, variance, beta, generator, steps=1000)
    np.testing.assert_allclose(mu, best_mu, atol=0.06)
    np.testing.assert_allclose(logvar, best_logvar.expand(5, 6), atol=0.5)
    least = loss(best_mu, best_logvar.expand(5, 6))
    assert least < loss(mu, logvar) < least + 0.01 * (loss(zeros, zeros) - least)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["mse", "gaussian"])
def test_the_gap_of_a_run(likelihood, faces_zip, tmp_path, capsys):
    run = tmp_path / "run"
    settings = {"epochs": 3, "batch_size": 25, "latent_dim": 16, "beta": 0.01, "likelihood": likelihood}
    train(TrainConfig(data=str(faces_zip), **settings), run, CPU)
    command = ["evaluate", str(run), "--data", str(faces_zip), "--gap", "5", "--json", str(tmp_path / "f.json")]
    assert main(command) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["amortization_gap"] > 1  # after three epochs the encoder is far from done
    assert found["amortization_gap_bits_per_dim"] == pytest.approx(found["amortization_gap"] / 3072 / math.log(2))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("amortization_gap "))
    assert line.endswith(" nats")


@pytest.mark.slow
def test_pictures_beyond_one_batch_count_alike(faces_zip, tmp_path):
    run = tmp_path / "run"
    train(TrainConfig(data=str(faces_zip), epochs=1, batch_size=50, latent_dim=4), run, CPU)
    one = np.random.default_rng(3).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    single = amortization_gap(run, one, CPU)["amortization_gap"]
    many = amortization_gap(run, one.repeat(101, 0), CPU)["amortization_gap"]
    assert many == pytest.approx(single, rel=0.3)


def test_an_export_has_no_decoder_to_descend_through(faces_zip, tmp_path, capsys):
    (tmp_path / "encoder.onnx").touch()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path), "--data", str(faces_zip), "--gap", "3"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --gap: ")
