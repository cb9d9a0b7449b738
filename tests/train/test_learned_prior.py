"""The prior that learns with the decoder: the same draws and density as `vae_runtime` has."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vae_runtime.prior import Flow, Prior
from vae_train.adversarial.prior import LearnedPrior, Reach, widened


def make_prior(kind: str, dim: int) -> Prior:
    rng = np.random.default_rng(3)
    weights, means = np.float32([0.3, 0.7]), rng.normal(size=(2, dim))
    spreads = rng.uniform(0.5, 1.5, (2, dim))
    if kind == "mixture":
        return Prior(weights, means, np.eye(dim) + rng.normal(0, 0.2, (2, dim, dim)))
    if kind == "tied":
        return Prior(weights, means, np.eye(dim)[None] + rng.normal(0, 0.2, (1, dim, dim)), spreads)
    layers, hidden, changed = 3, 4, 2 * (dim - dim // 2)
    flow = Flow(
        np.stack([rng.permutation(dim) for _ in range(layers)]),
        rng.normal(size=(layers, hidden, dim // 2)),
        rng.normal(size=(layers, hidden)),
        rng.normal(0, 0.4, (layers, changed, hidden)),
        rng.normal(0, 0.3, (layers, changed)),
        np.eye(dim) + rng.normal(0, 0.2, (dim, dim)),
        rng.normal(size=dim),
    )
    return Prior(weights, means, None, spreads, flow)


@pytest.mark.parametrize("dim", [2, 5, 6])
@pytest.mark.parametrize("kind", ["mixture", "tied", "flow"])
def test_it_is_the_prior_that_it_was_made_from(kind, dim):
    prior = make_prior(kind, dim)
    learned = LearnedPrior(prior)
    z = prior.sample(50, rng=0)
    found = learned.log_prob(torch.from_numpy(z)).detach().numpy()
    np.testing.assert_allclose(found, prior.log_prob(z), rtol=1e-4, atol=1e-4)
    draws = learned(torch.from_numpy(learned.mixture.sample(50, rng=0))).detach().numpy()
    np.testing.assert_allclose(draws, z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(learned.to_prior().sample(50, rng=0), z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mixture", "flow"])
def test_what_it_learned_is_what_the_runtime_samples(kind):
    """A step along the gradient of the density of some codes makes them likelier, by both."""
    torch.manual_seed(0)
    prior = make_prior(kind, 6)
    learned, codes = LearnedPrior(prior), torch.randn(200, 6) * 2 + 1
    optimizer = torch.optim.Adam(learned.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (-learned.log_prob(codes).mean()).backward()
        optimizer.step()
    changed = learned.to_prior()
    np.testing.assert_allclose(changed.log_prob(codes.numpy()), learned.log_prob(codes).detach(), rtol=1e-3, atol=1e-3)
    assert changed.log_prob(codes.numpy()).mean() > prior.log_prob(codes.numpy()).mean() + 0.1
    draws = learned(torch.from_numpy(learned.mixture.sample(50, rng=0))).detach().numpy()
    np.testing.assert_allclose(changed.sample(50, rng=0), draws, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["mixture", "flow"])
def test_a_flow_is_its_tensors(kind):
    """A new flow orders the elements at random; one that is loaded has the order that was saved, wherever it lies."""
    prior = make_prior(kind, 6)
    learned, other = LearnedPrior(prior), LearnedPrior(prior)
    for weights in learned.parameters():
        torch.nn.init.normal_(weights)
    other.load_state_dict(learned.state_dict(), assign=True)  # as if moved to another device
    codes = torch.randn(20, 6)
    torch.testing.assert_close(other(codes), learned(codes))
    torch.testing.assert_close(other.to_prior().sample(20, rng=0), learned.to_prior().sample(20, rng=0))


@pytest.mark.parametrize(("dim", "couplings"), [(1, 12), (4, 0)])
def test_what_cannot_or_may_not_learn_stays(dim, couplings):
    prior = Prior.standard(dim)
    learned = LearnedPrior(prior, couplings)
    assert not list(learned.parameters())
    assert learned.to_prior().is_standard
    z = torch.randn(5, dim)
    torch.testing.assert_close(learned(z), z)
    np.testing.assert_allclose(learned.log_prob(z), prior.log_prob(z.numpy()), rtol=1e-5)


@pytest.mark.parametrize("kind", ["mixture", "tied", "flow"])
def test_a_wider_prior_draws_the_same_further_from_its_means(kind):
    prior = dataclasses.replace(make_prior(kind, 5), flow=None)
    away = [p.sample(40, rng=1) - p.sample(40, rng=1, temperature=0) for p in (prior, widened(prior, 1.5))]
    np.testing.assert_allclose(away[1], 1.5 * away[0], rtol=1e-4, atol=1e-5)


def test_codes_that_go_astray_are_measured_by_their_mahalanobis_distance():
    rng = np.random.default_rng(3)
    codes = rng.normal(size=(4000, 5)) @ rng.normal(size=(5, 5)) + 2
    reach = Reach(torch.from_numpy(codes.astype(np.float32)))
    away = codes - codes.mean(0)
    squared = (away @ np.linalg.inv(np.cov(codes, rowvar=False)) * away).sum(1)
    np.testing.assert_allclose(reach.limit, np.quantile(squared, 0.99), rtol=1e-3)
    far = torch.from_numpy((3 * away[:50] + codes.mean(0)).astype(np.float32))
    expected = np.maximum(9 * squared[:50] / np.quantile(squared, 0.99) - 1, 0).mean()
    np.testing.assert_allclose(reach(far), expected, rtol=1e-3)
    near = torch.from_numpy(codes[squared < np.quantile(squared, 0.98)].astype(np.float32))
    assert reach(near) == 0
