from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from vae_runtime import latent
from vae_train.config import TrainConfig, make_config
from vae_train.engine.state import make_state
from vae_train.errors import UsageError
from vae_train.model import losses
from vae_train.model.layers import Block
from vae_train.model.networks import VAE, Decoder, Encoder, reparameterize
from vae_train.model.presets import PRESETS


def layers(module: nn.Module, kind: type) -> list:
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def test_the_classic_encoder_is_the_write_ups():
    encoder = Encoder()
    convolutions = layers(encoder, nn.Conv2d)
    assert [conv.out_channels for conv in convolutions] == [16, 32, 64, 128, 256]
    assert {(conv.kernel_size, conv.stride, conv.padding) for conv in convolutions} == {((3, 3), (2, 2), (1, 1))}
    assert len(layers(encoder, nn.BatchNorm2d)) == len(layers(encoder, nn.LeakyReLU)) == 5
    assert [(head.in_features, head.out_features) for head in (encoder.mu, encoder.logvar)] == [(256, 128)] * 2


def test_the_classic_decoder_is_its_mirror():
    decoder = Decoder()
    transposed = layers(decoder, nn.ConvTranspose2d)
    assert [conv.in_channels for conv in transposed] == [256, 128, 64, 32, 16]
    assert {conv.stride for conv in transposed} == {(2, 2)}
    last = layers(decoder, nn.Conv2d)
    assert [(conv.kernel_size, conv.out_channels) for conv in last] == [((3, 3), 3)]
    assert isinstance(decoder.layers[-1], nn.Sigmoid)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("size", "dim"), [(32, 128), (64, 128), (96, 7), (128, 1)])
def test_shapes_and_range(preset, size, dim):
    model = VAE(size, dim, preset)
    image = torch.rand(3, 3, size, size)
    reconstruction, mu, logvar = model(image, torch.randn(3, dim))
    assert mu.shape == logvar.shape == (3, dim)
    assert reconstruction.shape == image.shape
    assert 0 <= reconstruction.min() <= reconstruction.max() <= 1


@pytest.mark.parametrize("size", [0, 16, 33, 48, -32])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match="multiple of 32"):
        VAE(size)


def test_reparameterize_and_kl_are_the_runtimes(rng):
    mu, logvar, eps = rng.normal(size=(3, 6, 128)) * 3
    logvar[0, :4] = [-80, 80, 0, 20]
    mu_t, logvar_t, eps_t = map(torch.from_numpy, (mu, logvar, eps))
    ours = losses.kl_divergence(mu_t, logvar_t)
    np.testing.assert_allclose(ours, latent.kl_divergence(mu, logvar), rtol=1e-12)
    clipped = np.exp(np.clip(logvar, *latent.LOGVAR_RANGE) / 2)
    np.testing.assert_allclose(reparameterize(mu_t, logvar_t, eps_t), mu + clipped * eps)


def test_kl_agrees_with_torch_distributions(rng):
    mu, logvar = (torch.from_numpy(part) for part in rng.normal(size=(2, 9, 16)))
    q = torch.distributions.Normal(mu, (logvar / 2).exp())
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    expected = torch.distributions.kl_divergence(q, p).sum(1)
    torch.testing.assert_close(losses.kl_divergence(mu, logvar), expected)


def test_losses_are_sums_of_each_image():
    image = torch.zeros(2, 3, 4, 4)
    reconstruction = torch.full_like(image, 0.5)
    assert losses.squared_error(reconstruction, image).tolist() == [12.0, 12.0]
    kl = torch.tensor([1.0, 3.0])
    assert losses.negative_elbo(torch.tensor([10.0, 20.0]), kl, beta=2.0).tolist() == [12.0, 26.0]


def test_the_elbo_is_a_bound_of_a_likelihood_that_is_known():
    """x = z + noise, both Gaussian: the exact posterior makes the bound equal to log p(x)."""
    x, variance = torch.tensor([[0.8]], dtype=torch.float64), 0.5  # squared error = Gaussian of variance 1/2
    posterior_variance = 1 / (1 + 1 / variance)
    posterior_mean = posterior_variance * x / variance
    expected_error = (x - posterior_mean).square() + posterior_variance
    kl = losses.kl_divergence(posterior_mean, torch.full_like(x, math.log(posterior_variance)))
    bound = -(losses.negative_elbo(expected_error[0], kl)) - 0.5 * math.log(2 * math.pi * variance)
    exact = torch.distributions.Normal(0.0, torch.tensor(1 + variance).double().sqrt()).log_prob(x)
    assert bound.item() == pytest.approx(exact.item(), abs=1e-9)


def test_bits_per_dim_against_the_gaussian_density(rng):
    """Independent oracle: the mean log density of noise under its own Gaussian, for values of 1/256 each."""
    dimensions, sigma = 3072, 0.11
    noise = torch.from_numpy(rng.normal(0, sigma, (200, dimensions)))
    nats = -torch.distributions.Normal(0.0, noise.square().mean().sqrt()).log_prob(noise).mean()
    expected = nats.item() / math.log(2) + 8 + 19 / (dimensions * math.log(2))
    got = losses.bits_per_dim(noise.square().sum(1).mean().item(), 19.0, dimensions)
    assert got == pytest.approx(expected, abs=1e-9)


def test_bits_per_dim_of_the_known_figures():
    """The write-up's loop after 200 epochs: 80.7 nats, of which KL 19: 7.24 bits per dimension."""
    assert losses.bits_per_dim(61.7, 19.0, 3072) == pytest.approx(7.24, abs=0.005)


def test_the_gaussian_likelihood_is_that_of_torch_distributions(rng):
    image, reconstruction = (torch.from_numpy(part) for part in rng.random((2, 5, 3, 8, 8)))
    error = losses.squared_error(reconstruction, image)
    variance = losses.optimal_variance(error.mean(), 192)
    density = torch.distributions.Normal(reconstruction, variance.sqrt())
    torch.testing.assert_close(losses.gaussian_nll(error, variance, 192), -density.log_prob(image).flatten(1).sum(1))
    # No other variance fits the whole batch better.
    best = losses.gaussian_nll(error, variance, 192).mean()
    assert all(losses.gaussian_nll(error, variance * factor, 192).mean() > best for factor in (0.9, 1.1))
    assert losses.reconstruction_nats("gaussian", error.mean().item(), 192) == pytest.approx(best.item())
    assert losses.reconstruction_nats("mse", 3.5, 192) == 3.5


def test_the_gradient_of_the_gaussian_likelihood_is_that_of_the_log_of_the_error(rng):
    """The sigma-VAE: D/2 log MSE, with the variance as a constant of the batch."""
    image, start = (torch.from_numpy(part) for part in rng.random((2, 5, 3, 4, 4)))
    ours, oracle = start.clone().requires_grad_(), start.clone().requires_grad_()
    error = losses.squared_error(ours, image)
    losses.gaussian_nll(error, losses.optimal_variance(error.mean(), 48), 48).mean().backward()
    (48 / 2 * (oracle - image).square().mean().log()).backward()
    torch.testing.assert_close(ours.grad, oracle.grad)


def test_bits_per_dim_is_the_gaussian_bound_in_bits():
    nats = losses.reconstruction_nats("gaussian", 40.0, 3072) + 21.0
    assert losses.bits_per_dim(40.0, 21.0, 3072) == pytest.approx(nats / (3072 * math.log(2)) + 8)


def test_pixels_that_are_met_exactly_have_a_finite_likelihood():
    zero = torch.zeros(3)
    variance = losses.optimal_variance(zero.mean(), 48)
    assert variance.item() == pytest.approx((1 / 255) ** 2 / 12)
    assert losses.gaussian_nll(zero, variance, 48).isfinite().all()


def test_free_bits_are_the_maximum_of_each_latents_mean(rng):
    kl = torch.from_numpy(rng.random((7, 5)) * torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0]).numpy()).requires_grad_()
    mean = kl.mean(0)
    loss = losses.with_free_bits(kl, mean, 0.5).mean()
    assert loss.item() == pytest.approx(mean.clamp_min(0.5).sum().item())
    (gradient,) = torch.autograd.grad(loss, kl)
    (expected,) = torch.autograd.grad(mean.clamp_min(0.5).sum(), kl)
    torch.testing.assert_close(gradient, expected)


def test_a_block_is_its_input_and_a_change():
    block = Block(8).eval()
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x) - x, block.layers(x))
    nn.init.zeros_(block.layers[-1].weight)
    torch.testing.assert_close(block(x), x)


def test_the_fine_decoder_has_two_bottlenecks_and_channels_at_full_size() -> None:
    plain, fine = VAE(64, 8, "base"), VAE(64, 8, "base", "fine")
    blocks = [module for module in fine.decoder.modules() if isinstance(module, Block)]
    assert [tuple(block.layers[1].weight.shape) for block in blocks[:2]] == [(64, 128, 3, 3)] * 2
    assert fine.decoder.layers[-2].weight.shape == (3, 16, 3, 3)
    assert VAE.from_config(TrainConfig(image_size=64, latent_dim=8, preset="base")).state_dict().keys() == (
        plain.state_dict().keys()
    )
    assert fine.eval().decoder(torch.zeros(2, 8)).shape == (2, 3, 64, 64)
    with pytest.raises(UsageError, match="--decoder"):
        TrainConfig(decoder="fine")


@pytest.mark.parametrize(
    ("settings", "seed", "expected"),
    [
        ({"preset": "classic"}, 0, 18408.042764),
        ({"preset": "base"}, 0, 57102.218087),
        ({"preset": "base", "decoder": "fine"}, 0, 58293.319585),
        ({"preset": "base", "image_size": 96, "latent_dim": 7}, 3, 26201.673344),
    ],
)
def test_the_first_weights_of_a_seed_stay(settings, seed, expected):
    """The sum of their absolute values: a run can be repeated with a later version."""
    model = make_state(make_config({**settings, "seed": seed}), torch.device("cpu")).model
    total = sum(value.double().abs().sum().item() for value in model.state_dict().values())
    assert total == pytest.approx(expected, rel=1e-8)
