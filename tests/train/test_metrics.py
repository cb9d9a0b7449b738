from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vae_train.model import metrics
from vae_train.model.metrics import importance_bound, psnr, sliced_wasserstein, ssim


@pytest.fixture
def pictures(rng):
    """Smooth pictures and noisy copies of them, (6, 3, 32, 32)."""
    small = torch.from_numpy(rng.random((6, 3, 5, 5)))
    smooth = torch.nn.functional.interpolate(small, 32, mode="bicubic").clamp(0, 1).float()
    noise = torch.from_numpy(rng.normal(0, 0.1, smooth.shape)).float()
    return smooth, (smooth + noise).clamp(0, 1)


def test_psnr_and_ssim_are_those_of_scikit_image(pictures):
    for target, image, ours_psnr, ours_ssim in zip(*pictures, psnr(*pictures), ssim(*pictures), strict=True):
        a, b = target.permute(1, 2, 0).numpy(), image.permute(1, 2, 0).numpy()
        assert ours_psnr.item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-3)
        expected = structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours_ssim.item() == pytest.approx(expected, abs=1e-5)


def test_ssim_of_a_picture_with_itself_is_one(pictures):
    torch.testing.assert_close(ssim(pictures[0], pictures[0]), torch.ones(6))
    assert torch.isfinite(psnr(pictures[0], pictures[0])).all()


def linear_gaussian(k: int, n: int, seed: int) -> tuple[float, float]:
    """(importance bound, exact -log p(x)) of x = z + noise, in 3 dimensions, with a posterior that is a bit off."""
    generator = torch.Generator().manual_seed(seed)
    variance = 0.5
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) * math.sqrt(1 + variance)
    mu, logvar = 0.6 * x, torch.full_like(x, math.log(0.4))
    z = mu + torch.exp(logvar / 2) * torch.randn(k, n, 3, generator=generator, dtype=torch.float64)
    nll = 0.5 * ((x - z).square() / variance + math.log(2 * math.pi * variance)).sum(-1)
    exact = -torch.distributions.Normal(0.0, torch.tensor(1 + variance).double().sqrt()).log_prob(x).sum(1).mean()
    return importance_bound(nll, z, mu, logvar).mean().item(), exact.item()


def test_the_importance_bound_closes_in_on_the_exact_likelihood():
    gaps = []
    for k in (1, 8, 2000):
        bound, exact = linear_gaussian(k, 1000, seed=k)
        gaps.append(bound - exact)
    assert gaps[0] > gaps[1] > gaps[2] > -0.01
    assert gaps[2] == pytest.approx(0, abs=0.005)


def test_at_one_draw_it_is_the_elbo():
    bound, exact = linear_gaussian(1, 200_000, seed=0)
    # KL(q || exact posterior) is the gap: N(0.6 x, 0.4) against N(2/3 x, 1/3), with E[x^2] = 1.5
    gap = 3 * 0.5 * (0.4 / (1 / 3) + (1 / 15) ** 2 * 1.5 / (1 / 3) - 1 + math.log((1 / 3) / 0.4))
    assert bound - exact == pytest.approx(gap, abs=0.01)


def faces(seed: int, n: int = 40, side: int = 32) -> torch.Tensor:
    small = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(small, side, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def test_swd_of_one_set_with_itself_in_another_order_is_small():
    one = faces(0, 80)
    same = sliced_wasserstein(one, one.flip(0))
    assert same.keys() == {32, 16}
    mosaic = one[..., ::8, ::8].repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = sliced_wasserstein(one, mosaic)
    assert all(other[level] > 2 * same[level] for level in (32, 16))
    assert sliced_wasserstein(one, one.flip(0)) == same


def test_swd_levels_follow_the_side():
    assert list(sliced_wasserstein(faces(0, 4, 64), faces(1, 4, 64))) == [64, 32, 16]


def test_swd_is_the_mean_of_one_dimensional_distances(monkeypatch):
    """Oracle: scipy's distance along each direction, for descriptors that are given."""
    monkeypatch.setattr(metrics, "DIRECTIONS", 40)
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(300, 147, generator=generator), 1.5 * torch.randn(300, 147, generator=generator) + 0.2
    queue = [a, b]
    monkeypatch.setattr(metrics, "_pyramid", lambda pixels: [pixels])
    monkeypatch.setattr(metrics, "_descriptors", lambda level, generator: queue.pop(0))
    (got,) = sliced_wasserstein(faces(0, 2), faces(1, 2), seed=9).values()
    directions = torch.randn(147, 40, generator=torch.Generator().manual_seed(9))
    directions /= directions.norm(dim=0)
    expected = np.mean([wasserstein_distance(a @ d, b @ d) for d in directions.T])
    assert got == pytest.approx(1000 * expected, rel=1e-4)


def test_the_laplacian_pyramid_adds_up_to_the_picture():
    pixels = faces(3, 2, 64)
    fine, middle, coarse = metrics._pyramid(pixels)
    assert [level.shape[-1] for level in (fine, middle, coarse)] == [64, 32, 16]
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = (kernel[:, None] * kernel).expand(3, 1, 5, 5)

    def enlarge(x: torch.Tensor) -> torch.Tensor:
        spread = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[..., ::2, ::2] = x
        padded = torch.nn.functional.pad(spread, (2, 2, 2, 2), mode="reflect")
        return 4 * torch.nn.functional.conv2d(padded, kernel, groups=3)

    whole = fine + enlarge(middle + enlarge(coarse))
    torch.testing.assert_close(whole, pixels.float() / 127.5 - 1, atol=1e-5, rtol=0)


def test_descriptors_are_normalised_patches():
    level = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 7 + 3
    found = metrics._descriptors(level, torch.Generator().manual_seed(1)).reshape(5, 128, 49, 3)
    torch.testing.assert_close(found.mean((0, 1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((0, 1, 2), correction=0), torch.ones(3), atol=1e-4, rtol=0)
