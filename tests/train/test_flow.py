"""A flow fitted to codes of a known density."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vae_train.data.faces import load_faces
from vae_train.export import fit_flow as flow
from vae_train.export import fit_latents as posterior
from vae_train.export.fit_flow import fit_flow
from vae_train.export.fit_latents import closest_prior, fit_latents
from vae_train.model.networks import VAE


def banana(rng: np.random.Generator, count: int) -> np.ndarray:
    """Codes on a bow, which no Gaussian is: (count, 3)."""
    a, b, c = rng.normal(size=(3, count))
    return np.stack([2 * a, a**2 - 1 + 0.3 * b, c], axis=1).astype(np.float32)


def bow_log_prob(z: np.ndarray) -> np.ndarray:
    """The density of `banana` in closed form."""
    a = z[:, 0] / 2
    squares = a**2 + ((z[:, 1] - a**2 + 1) / 0.3) ** 2 + z[:, 2] ** 2
    return -squares / 2 - 1.5 * np.log(2 * np.pi) - np.log(2 * 0.3)


@pytest.fixture(scope="module")
def bow():
    rng = np.random.default_rng(0)
    mu = banana(rng, 6000)
    noise = np.full_like(mu, -14)  # hardly any
    return mu, noise, fit_flow(mu, noise)


@pytest.mark.slow
def test_a_bow_is_found(bow):
    """Mean log density of fresh codes: near that of their true density, where a Gaussian is far from it."""
    _, _, prior = bow
    z = banana(np.random.default_rng(1), 4000)
    gaussian = posterior._mixture(bow[0], 1, 0)
    true, found, plain = bow_log_prob(z).mean(), prior.log_prob(z).mean(), gaussian.log_prob(z).mean()
    assert plain < true - 1.0
    assert found > true - 0.35
    assert found < true + 0.05  # no density beats the true one


@pytest.mark.slow
def test_its_draws_are_the_bow(bow):
    z = bow[2].sample(20_000, rng=0)
    real = banana(np.random.default_rng(2), 20_000)
    for column in range(3):
        np.testing.assert_allclose(
            np.quantile(z[:, column], [0.1, 0.5, 0.9]), np.quantile(real[:, column], [0.1, 0.5, 0.9]), atol=0.25
        )
    assert np.corrcoef(z[:, 0] ** 2, z[:, 1])[0, 1] > 0.85


@pytest.mark.slow
def test_the_same_codes_give_the_same_flow_and_leave_torch_alone(bow, monkeypatch):
    monkeypatch.setattr(flow, "_STEPS", 5)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    one, two, other = (fit_flow(bow[0], bow[1], seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(one.flow.inner, two.flow.inner)
    assert (one.flow.inner != other.flow.inner).any()


@pytest.mark.slow
def test_the_noise_of_the_posteriors_is_part_of_the_density():
    """mu at one point, and sigma of 2: the flow is the Gaussian N(mu, 4 I)."""
    mu, logvar = np.tile(np.float32([1, -3]), (500, 1)), np.full((500, 2), 2 * np.log(2), np.float32)
    z = fit_flow(mu, logvar).sample(20_000, rng=0)
    np.testing.assert_allclose(z.mean(0), [1, -3], atol=0.15)
    np.testing.assert_allclose(np.cov(z.T), 4 * np.eye(2), atol=0.5)


@pytest.mark.slow
def test_the_nearest_prior_is_the_one_that_the_pictures_came_from(rng):
    network = VAE(32, 4).eval()
    torch.nn.init.normal_(network.decoder.layers[0].weight, 0, 1.0, torch.Generator().manual_seed(0))
    right, wrong = (posterior.Prior([1.0], np.zeros((1, 4)), np.eye(4)[None] * scale) for scale in (1.0, 0.05))
    pixels = posterior.decode(network, right.sample(150, rng=9)).numpy()
    assert closest_prior(network, [wrong, right], pixels) is right
    assert closest_prior(network, [right, wrong], pixels) is right


@pytest.mark.parametrize("mirrored", [False, True])
def test_learn_fits_what_training_saw_and_takes_the_nearest(faces_zip, monkeypatch, rng, mirrored):
    """With `mirrored`, the codes of mirrored pictures, too; the flow is taken where its pictures are nearer."""
    faces = load_faces(str(faces_zip), 32)
    network = VAE(32, 4).eval()
    pixels = faces.pixels[~faces.held_out()]
    seen = []

    def fake(mu: np.ndarray, logvar: np.ndarray) -> posterior.Prior:
        seen.append(mu)
        return posterior.Prior([1.0], mu.mean(0, keepdims=True), np.eye(4)[None] * 0.1)

    assert "flow" not in fit_latents(network, faces, mirrored).scores  # too few pictures for one
    monkeypatch.setattr(posterior, "_FLOW_GAIN", -np.inf)
    monkeypatch.setattr(posterior, "_FLOW_CODES", 10)
    monkeypatch.setattr(posterior, "_FLOW_GAIN", -np.inf)
    monkeypatch.setattr(posterior, "fit_flow", fake)
    for place in (0, -1):
        monkeypatch.setattr(posterior, "closest_prior", lambda network, priors, pixels, place=place: priors[place])
        prior, _, _, scores = fit_latents(network, faces, mirrored)
        assert "flow" in scores
        assert (prior.scales is not None and prior.scales[0, 0, 0] == np.float32(0.1)) == (place == -1)
    codes = posterior.encode(network, pixels).mu
    assert len(seen[0]) == len(pixels) * (1 + mirrored)
    np.testing.assert_array_equal(seen[0][: len(codes)], codes)
    if mirrored:
        np.testing.assert_allclose(seen[0][-1], posterior.encode(network, pixels[-1:, :, :, ::-1]).mu[0], atol=1e-5)


def test_a_code_of_one_number_has_no_flow(faces_zip, monkeypatch):
    monkeypatch.setattr(posterior, "_FLOW_CODES", 10)
    assert "flow" not in fit_latents(VAE(32, 1).eval(), load_faces(str(faces_zip), 32)).scores


def test_a_flow_is_not_tried_where_a_mixture_gains_nothing(faces_zip, monkeypatch):
    def fail(*_):
        raise AssertionError("a flow was fitted")

    unit = posterior.Prior.standard(4)
    monkeypatch.setattr(posterior, "_FLOW_CODES", 10)
    monkeypatch.setattr(posterior, "fit_flow", fail)
    monkeypatch.setattr(posterior, "fit_prior", lambda *_: (unit, {"unit": -5.0, "1": -4.7}))
    threads = torch.get_num_threads()
    assert fit_latents(VAE(32, 4).eval(), load_faces(str(faces_zip), 32)).prior is unit
    assert torch.get_num_threads() == threads
