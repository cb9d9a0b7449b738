"""Priors that are fitted to the codes of your own pictures."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from tiny_model import DIM, SIZE

from vae_runtime import VAE, InputError, InputTypeError, Prior
from vae_runtime.prior import Flow, fit_prior
from vae_runtime.prior.fitting import MIN_CODES, Frame, ledoit_wolf

WIDE = 96
"""More latents than codes: where the sample covariance is singular."""


def codes(rng, count, dim=WIDE, parts=1):
    """mu and logvar: Gaussians that reach far along few axes, and posteriors of different widths."""
    axes = rng.normal(size=(dim, dim)) * np.exp(-np.arange(dim) / 10)
    spreads = np.exp(rng.choice(np.linspace(-1, 1, parts) if parts > 1 else [0.0], (count, 1)))
    mu = 0.7 + spreads * (rng.normal(size=(count, dim)) @ axes.T) / 3
    return mu, np.broadcast_to(rng.normal(-2, 0.3, dim), mu.shape)


@pytest.fixture(scope="module")
def vae(tiny):
    return VAE.load(tiny.folder, device="cpu")


@pytest.fixture
def faces(rng):
    return rng.integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("shape", [(16, 96), (40, 20), (500, 8), (16, 1)])
def test_ledoit_wolf_is_that_of_scikit_learn(rng, shape):
    covariance = pytest.importorskip("sklearn.covariance")
    points = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1])) + 3
    oracle = covariance.LedoitWolf().fit(points)
    found, shrinkage = ledoit_wolf(points)
    np.testing.assert_allclose(found, oracle.covariance_, rtol=1e-9, atol=1e-12)
    assert shrinkage == pytest.approx(oracle.shrinkage_)


@pytest.mark.parametrize("count", [MIN_CODES, 60, 300])
def test_held_out_codes_are_denser_than_under_the_unit_normal(rng, count):
    mu, logvar = codes(rng, count + 200)
    prior, scores = fit_prior(mu[:count], logvar[:count])
    test = mu[count:] + np.exp(logvar[count:] / 2) * rng.normal(size=mu[count:].shape)
    assert prior.log_prob(test).mean() > Prior.standard(WIDE).log_prob(test).mean() + 1
    assert max(scores.values()) == pytest.approx(prior.log_prob(test).mean(), rel=0.2)


def test_codes_of_the_unit_normal_keep_it_near(rng):
    logvar = np.full((40, WIDE), -8.0)
    prior, _ = fit_prior(rng.normal(size=(40, WIDE)), logvar)
    test = rng.normal(size=(500, WIDE))
    assert prior.log_prob(test).mean() > Prior.standard(WIDE).log_prob(test).mean() - 3


def test_many_codes_of_different_strength_become_a_mixture(rng):
    mu, logvar = codes(rng, 1500, dim=12, parts=3)
    prior, scores = fit_prior(mu, logvar)
    assert len(prior.weights) > 1
    assert scores[f"{len(prior.weights)} Gaussians"] == max(scores.values())


@pytest.mark.parametrize("bent", [False, True])
def test_a_prior_is_moved_to_the_moments_of_codes(rng, bent):
    dim, layers = 6, 2
    base = Prior(np.array([0.5, 0.5]), rng.normal(size=(2, dim)), rng.normal(size=(1, dim, dim)), np.ones((2, dim)))
    if bent:
        arrays = [rng.normal(size=shape) / 10 for shape in ((layers, 5, 3), (layers, 5), (layers, 6, 5), (layers, 6))]
        orders = np.stack([rng.permutation(dim) for _ in range(layers)])
        base = dataclasses.replace(base, flow=Flow(orders, *arrays, rng.normal(size=(dim, dim)), rng.normal(size=dim)))
    stretch = rng.normal(size=(dim, dim))
    mu = (rng.normal(size=(4000, dim)) @ stretch + 3).astype(np.float64)
    moved = Frame.of(base).move(mu, np.full(mu.shape, -20.0))
    draws = moved.sample(20_000, 1)
    np.testing.assert_allclose(draws.mean(0), mu.mean(0), atol=0.3)
    covariance = np.cov(mu.T)
    assert np.abs(np.cov(draws.T) - covariance).max() < 0.25 * np.abs(covariance).max()
    assert moved.kind == base.kind
    few = Frame.of(base).move(mu[:2], np.full((2, dim), -1.0))
    assert np.isfinite(few.log_prob(few.sample(5, 0))).all()


def test_held_out_codes_decide_whether_the_prior_of_the_model_is_moved(rng):
    dim = 12
    means = np.sign(rng.normal(size=(2, dim))) * 2
    base = Prior(np.array([0.9, 0.1]), means, np.eye(dim)[None], np.full((2, dim), [[1.0], [0.3]]))
    alike = base.sample(60, 1) * 1.5 + 2
    other = rng.choice([-9.0, 9.0], (400, 1)) + rng.normal(size=(400, dim)) * rng.choice([0.1, 2.0], (400, 1))
    for mu, moves in ((alike, True), (other, False)):
        prior, scores = fit_prior(mu, np.full(mu.shape, -6.0), base=base)
        assert (scores["moved"] == max(scores.values())) == moves
        assert (prior.kind == base.kind and np.array_equal(prior.weights, base.weights)) == moves


def test_a_tuned_prior_is_moved_by_how_codes_differ(rng, tmp_path):
    """Draws of N(5, I) look like pictures whose codes are N(0, 4 I): codes of N(2, I) ask for N(2 + 5 / 2, I / 4)."""
    dim = 6
    tuned = Prior([1.0], np.full((1, dim), 5.0), None, None, None, np.zeros(dim), 4 * np.eye(dim))
    mu, tight = rng.normal(size=(3000, dim)) + 2, np.full((3000, dim), -12.0)
    prior, scores = fit_prior(mu, tight, base=Prior.load(tuned.save(tmp_path / "tuned.npz")))
    assert scores["moved"] < max(scores.values()), "it is no density of these codes, and is moved nevertheless"
    draws = prior.sample(20_000, 0)
    np.testing.assert_allclose(draws.mean(0), 2 + 5 / 2, atol=0.2)
    np.testing.assert_allclose(np.cov(draws.T), np.eye(dim) / 4, atol=0.05)
    np.testing.assert_allclose(prior.code_mean, mu.mean(0), atol=1e-5)
    np.testing.assert_allclose(prior.code_covariance, np.cov(mu.T), atol=0.1)
    again = Frame.of(prior).move(mu, tight)
    np.testing.assert_allclose(again.sample(10, 0), prior.sample(10, 0), atol=0.1)


def test_the_density_of_codes_is_the_gaussian_of_their_moments(rng):
    root = rng.normal(size=(4, 4))
    mean, covariance = rng.normal(size=4), root @ root.T + np.eye(4)
    found = Prior([1.0], np.full((1, 4), 9.0), None, None, None, mean, covariance).of_codes
    z = rng.normal(size=(7, 4))
    pulled = np.einsum("ni,ij,nj->n", z - mean, np.linalg.inv(covariance), z - mean)
    expected = -(pulled + np.linalg.slogdet(covariance)[1] + 4 * np.log(2 * np.pi)) / 2
    np.testing.assert_allclose(found.log_prob(z.astype(np.float32)), expected, rtol=1e-4)
    own = Prior.standard(4)
    assert own.of_codes is own


@pytest.mark.parametrize(
    "given", [(np.zeros(3), None), (None, np.eye(3)), (np.zeros(2), np.eye(3)), (np.zeros(3), [1.0])]
)
def test_codes_of_another_shape_are_refused(given):
    with pytest.raises(InputError, match="code_"):
        Prior([1.0], np.zeros((1, 3)), None, None, None, *given)


def test_the_same_codes_give_the_same_prior_and_one_that_can_be_saved(rng, tmp_path):
    mu, logvar = codes(rng, 100)
    first, again = fit_prior(mu, logvar)[0], fit_prior(mu, logvar)[0]
    assert first.save(tmp_path / "a.npz").read_bytes() == again.save(tmp_path / "b.npz").read_bytes()
    np.testing.assert_array_equal(Prior.load(tmp_path / "a.npz").sample(3, rng=1), first.sample(3, rng=1))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda mu, logvar: (mu[:15], logvar[:15]), InputError),
        (lambda mu, logvar: (np.repeat(mu[:5], 10, axis=0), np.repeat(logvar[:5], 10, axis=0)), InputError),
        (lambda mu, logvar: (mu, logvar[:-1]), InputError),
        (lambda mu, logvar: (np.full_like(mu, np.nan), logvar), InputError),
        (lambda mu, logvar: (None, logvar), InputTypeError),
    ],
)
def test_too_few_or_invalid_codes_are_refused(rng, change, error):
    with pytest.raises(error):
        fit_prior(*change(*codes(rng, 50)))


def test_the_verbs(vae, tiny, faces, tmp_path):
    prior = vae.fit_prior(iter(faces))
    np.testing.assert_array_equal(vae.sample(5, rng=1, prior=prior), vae.decode(prior.sample(5, rng=1)))
    prior.save(tmp_path / "mine.npz")
    for given in (prior, tmp_path / "mine.npz", str(tmp_path / "mine.npz")):
        own = VAE.load(tiny.folder, device="cpu", prior=given)
        np.testing.assert_array_equal(own.sample(5, rng=1), vae.sample(5, rng=1, prior=prior))
        again = pickle.loads(pickle.dumps(own))
        np.testing.assert_array_equal(again.sample(5, rng=1), own.sample(5, rng=1))


@pytest.mark.parametrize("count", [0, 1, 15])
def test_too_few_pictures_are_named(vae, faces, count):
    with pytest.raises(InputError, match="16"):
        vae.fit_prior(faces[:count])


def test_a_prior_of_another_latent_dim_is_refused(vae, tiny):
    wrong = Prior.standard(DIM + 1)
    with pytest.raises(InputError, match="prior"):
        vae.sample(1, prior=wrong)
    with pytest.raises(InputError, match="prior"):
        VAE.load(tiny.folder, device="cpu", prior=wrong)
