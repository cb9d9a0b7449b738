from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import write_faces

import vae_runtime
from vae_runtime.config import DIRECTIONS_FILE, PRIOR_FILE
from vae_train.config import TrainConfig
from vae_train.data.faces import load_faces
from vae_train.data.labels import avatar_labels
from vae_train.engine.train import train
from vae_train.errors import UsageError
from vae_train.evaluation.evaluate import evaluate, open_model
from vae_train.export import fit_latents as posterior
from vae_train.export.export import export, source_of
from vae_train.export.fit_latents import Codes, encode, fit_directions, fit_prior, with_codes
from vae_train.model.networks import VAE


def codes(mu: np.ndarray, sigma: float) -> Codes:
    return Codes(mu.astype(np.float32), np.full(mu.shape, 2 * np.log(sigma), np.float32))


def test_a_prior_that_is_kept_knows_the_codes(rng):
    mu = rng.normal(size=(5000, 3)) * [1, 2, 3] + [4, 0, -1]
    prior = with_codes(vae_runtime.Prior.standard(3), codes(mu, 0.5))
    np.testing.assert_allclose(prior.code_mean, mu.mean(0), rtol=1e-4)
    np.testing.assert_allclose(prior.code_covariance, np.cov(mu.T) + 0.25 * np.eye(3), atol=1e-4)


def test_one_gaussian_is_found_again(rng):
    """mu ~ N(m, A A^T - s^2 I) under noise s: the aggregated posterior is N(m, A A^T)."""
    covariance = np.array([[4.0, 1.5, 0.0], [1.5, 2.0, -0.3], [0.0, -0.3, 0.5]])
    mean = np.array([1.0, -2.0, 0.5])
    mu = rng.multivariate_normal(mean, covariance - 0.09 * np.eye(3), 9000)
    prior, scores = fit_prior(codes(mu[:8000], 0.3), codes(mu[8000:], 0.3))
    assert scores["1"] > scores["unit"]
    assert len(prior.weights) == 1
    np.testing.assert_allclose(prior.means[0], mean, atol=0.1)
    np.testing.assert_allclose(prior.scales[0] @ prior.scales[0].T, covariance, atol=0.2)


def test_two_heaps_ask_for_two_gaussians(rng):
    mu = np.where(rng.random((6000, 1)) < 0.25, -3.0, 3.0) + rng.normal(0, 0.5, (6000, 2))
    prior, scores = fit_prior(codes(mu[:5000], 0.1), codes(mu[5000:], 0.1))
    assert scores["2"] > scores["1"] + 0.5
    np.testing.assert_allclose(sorted(prior.weights)[-2:], [0.25, 0.75], atol=0.05)
    assert prior.log_prob(mu[5000:].astype(np.float32)).mean() == pytest.approx(max(scores.values()), abs=0.1)


def test_strong_and_weak_codes_ask_for_gaussians_of_one_shape(rng):
    """Codes of one direction that reach far or not: a covariance of its own for each heap would need more of them."""
    shape = rng.normal(size=(40, 40))
    mu = np.exp(rng.normal(0, 0.6, (1200, 1))) * rng.normal(size=(1200, 40)) @ shape.T
    prior, scores = fit_prior(codes(mu[:1000], 0.01), codes(mu[1000:], 0.01))
    assert max(scores, key=lambda name: scores[name]).endswith(" tied")
    assert prior.spreads is not None
    assert max(scores.values()) > scores["1"] + 5
    drawn, real = (
        np.linalg.norm(points @ np.linalg.inv(shape).T, axis=1) for points in (prior.sample(4000, rng=0), mu)
    )
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), np.quantile(real, [0.1, 0.5, 0.9]), rtol=0.15)


def test_a_unit_gaussian_stays_one(rng):
    mu = rng.normal(0, np.sqrt(0.5), (400, 30))
    prior, scores = fit_prior(codes(mu[:300], np.sqrt(0.5)), codes(mu[300:], np.sqrt(0.5)))
    assert max(scores, key=scores.get) == "unit"
    assert prior.scales is None


def test_few_codes_of_many_numbers_get_a_shrunk_prior(rng):
    """60 codes of 100 numbers determine no covariance, and are still far from N(0, I)."""
    mu = 0.2 * rng.normal(size=(80, 100)) + 1.0
    prior, scores = fit_prior(codes(mu[:60], 0.1), codes(mu[60:], 0.1))
    assert set(scores) == {"unit", "shrunk"}
    assert scores["shrunk"] > scores["unit"] + 20
    assert not prior.is_standard
    np.testing.assert_allclose(prior.sample(500, rng=0).mean(), 1.0, atol=0.1)


def test_fewer_codes_than_a_fit_needs_leave_the_prior(rng):
    mu = rng.normal(size=(12, 100))
    prior, scores = fit_prior(codes(mu[:10], 0.1), codes(mu[10:], 0.1))
    assert prior.is_standard
    assert set(scores) == {"unit"}


def test_directions_find_labels_and_colors(rng):
    n = 600
    glasses, hair = rng.random(n) < 0.5, rng.integers(0, 3, n)
    pixels = rng.integers(0, 60, (n, 3, 32, 32)).astype(np.uint8)
    pixels[hair == 2, 2, :12] += 180  # blue hair
    mu = rng.normal(0, 0.3, (n, 6))
    mu[:, 1] += glasses
    mu[:, 4] += 2.0 * (hair == 2)
    labels = {
        "glasses": np.where(glasses, "ROUND", "NONE").tolist(),
        "hair_color": np.array(["BLACK", "BLONDE", "BLUE"])[hair].tolist(),
        "beard": ["NONE"] * n,
    }
    found = fit_directions(codes(mu, 0.1), pixels, avatar_labels(labels), measure_hair=True)
    assert {"pca-1", "glasses", "hair-black", "hair-blue", "hair-bluish", "brightness"} <= set(found.names)
    assert "beard" not in found.names  # nobody has one
    for name, place in (("glasses", 1), ("hair-blue", 4), ("hair-bluish", 4)):
        vector = found[name]
        assert vector.argmax() == place, name
        assert vector[place] / np.linalg.norm(vector) > 0.9
        assert np.linalg.norm(vector) == pytest.approx((mu @ vector / np.linalg.norm(vector)).std(), rel=0.01)


def test_labels_of_some_faces_are_directions_and_nothing_about_hair_is_built_in(rng):
    n = 900
    kind, known = rng.integers(0, 3, n), rng.random(n) < 0.7
    mu = rng.normal(0, 0.3, (n, 6))
    mu[:, 2] += 2.0 * (kind == 1)
    mu[:, 3] += 2.0 * (kind == 2)
    names = ["Tabby", "Maine Coon", "Siamese"]
    labels = {
        "breed": [names[each] if seen else None for each, seen in zip(kind, known, strict=True)],
        "asleep": ["yes" if each == 2 else "no" for each in kind],
    }
    pixels = rng.integers(0, 256, (n, 3, 8, 8)).astype(np.uint8)
    found = fit_directions(codes(mu, 0.1), pixels, labels)
    others = {name for name in found.names if not name.startswith("pca-")}
    assert others == {"breed-tabby", "breed-maine-coon", "breed-siamese", "asleep", "brightness"}
    for name, place in (("breed-maine-coon", 2), ("breed-siamese", 3), ("asleep", 3)):
        assert found[name].argmax() == place, name


def test_codes_are_those_of_the_encoder(rng):
    network = VAE(32, 5)
    pixels = rng.integers(0, 256, (7, 3, 32, 32), np.uint8)
    found = encode(network, pixels)
    with torch.no_grad():
        mu, logvar = network.eval().encoder(torch.from_numpy(pixels).float() / 255)
    np.testing.assert_allclose(found.mu, mu, atol=1e-6)
    np.testing.assert_allclose(found.logvar, logvar, atol=1e-6)


@pytest.fixture(scope="module")
def run(faces_zip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(data=str(faces_zip), epochs=3, batch_size=50, latent_dim=4)
    train(config, folder, torch.device("cpu"))
    return folder


@pytest.mark.slow
def test_an_export_with_its_pictures_has_a_prior_and_directions(run, faces_zip, tmp_path):
    config = export(run, tmp_path / "model", faces=source_of(run))
    assert DIRECTIONS_FILE in config.files
    player = vae_runtime.VAE.load(tmp_path / "model", device="cpu")
    assert player.directions is not None
    assert "pca-1" in player.directions.names
    card = (tmp_path / "model" / "README.md").read_text()
    assert "`pca-1`, " in card
    if PRIOR_FILE in config.files:
        assert not np.array_equal(player.sample(4, rng=0), player.sample(4, rng=0, prior="unit"))
    again = export(run, tmp_path / "again", faces=load_faces(str(faces_zip), 32))
    assert again.files == config.files


@pytest.mark.slow
def test_a_fitted_prior_is_what_samples_come_from(run, tmp_path, monkeypatch):
    shifted = posterior.Prior(np.ones(1), np.full((1, 4), 3.0), np.eye(4)[None] * 0.01)
    monkeypatch.setattr(posterior, "fit_prior", lambda *_: (shifted, {"unit": 0.0, "1": 0.0}))
    export(run, tmp_path / "model", faces=source_of(run))
    player = vae_runtime.VAE.load(tmp_path / "model", device="cpu")
    assert "`prior.npz`, a Gaussian fitted" in (tmp_path / "model" / "README.md").read_text()
    expected = player.decode(np.full((1, 4), 3.0, np.float32)).astype(int)
    assert np.abs(player.sample(3, rng=1).astype(int) - expected).max() <= 6
    figures = evaluate(open_model(tmp_path / "model", torch.device("cpu")), source_of(run).pixels[:20])
    assert figures["swd_prior_samples"] > figures["swd_real_halves"]  # it always draws the same face
    assert figures["swd_prior_samples"] != figures["swd_samples"]


def test_without_its_pictures_the_prior_stays_and_it_is_said(finished, tmp_path, capsys):
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.json").write_text((finished / "config.json").read_text().replace("blobs.zip", "gone.zip"))
    assert source_of(moved) is None
    assert "the prior stays N(0, I)" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no such file"):
        source_of(finished, "nowhere.zip")


def test_other_pictures_are_refused(finished, tmp_path):
    other = source_of(finished, str(write_faces(tmp_path / "other.zip", 30)))
    with pytest.raises(UsageError, match="not the pictures"):
        export(finished, tmp_path / "model", faces=other)
    assert not (tmp_path / "model").exists()
