"""The patch distance: a loss that knows soft pictures from rough ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch.nn import functional

from vae_train.config import TrainConfig
from vae_train.engine.schedule import sharpness_weight
from vae_train.engine.step import draw_kernels
from vae_train.model.losses import PATCH_KERNELS, patch_distance, patch_kernels

CPU = torch.device("cpu")


def kernels(count: int = 12) -> torch.Tensor:
    return patch_kernels(torch.randn(count, 3, 7, 7, generator=torch.Generator().manual_seed(1)))


def noise(seed: int, side: int = 32) -> torch.Tensor:
    return torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(seed))


def textured(seed: int, same: bool = False, strength: float = 0.1) -> torch.Tensor:
    """Smooth pictures with a fine texture each, or all with the same one."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    texture = torch.randn(1 if same else 64, 3, 32, 32, generator=generator)
    return functional.interpolate(smooth, 32, mode="bicubic") + strength * texture


def test_it_is_the_mean_of_one_dimensional_distances():
    """Oracle: scipy's distance of the projected patches of each place; at 16 pixels the pyramid has one level."""
    one, other, ways = noise(0, 16), 0.5 * noise(1, 16), kernels()
    deviation = other.std((0, 2, 3)).repeat_interleave(49)[:, None]
    first, second = (
        (ways.flatten(1) @ (functional.unfold(images, 7) / deviation)).flatten(1).T for images in (one, other)
    )
    assert first.shape == (12 * 100, 6)
    expected = np.mean([wasserstein_distance(a, b) for a, b in zip(first, second, strict=True)])
    assert patch_distance(one, other, ways).item() == pytest.approx(expected, rel=1e-4)


def test_the_same_pictures_in_another_order_are_no_distance():
    images = noise(0)
    assert patch_distance(images, images, kernels()).item() == 0
    assert patch_distance(images.flip(0), images, kernels()).item() == pytest.approx(0, abs=1e-6)


def test_rough_pictures_are_nearer_than_soft_ones_of_half_their_error():
    images, rough, soft = textured(0), textured(1), textured(0, strength=0)
    errors = [(made - images).square().mean().item() for made in (rough, soft)]
    assert errors[0] > 1.5 * errors[1]
    assert patch_distance(rough, images, kernels()) < 0.5 * patch_distance(soft, images, kernels())


def test_the_same_dots_in_each_picture_do_not_count_as_roughness():
    images = textured(0)
    own, same = (patch_distance(textured(1, each), images, kernels()) for each in (False, True))
    assert same > 1.5 * own


def test_descent_on_it_makes_soft_pictures_rough():
    images = noise(0)
    made = functional.avg_pool2d(images, 3, 1, 1).requires_grad_()
    optimizer = torch.optim.Adam([made], lr=0.02)
    start = patch_distance(made, images, kernels()).item()
    for step in range(40):
        ways = patch_kernels(torch.randn(12, 3, 7, 7, generator=torch.Generator().manual_seed(step)))
        optimizer.zero_grad()
        patch_distance(made, images, ways).backward()
        optimizer.step()
    assert patch_distance(made, images, kernels()).item() < 0.6 * start


def test_a_flat_picture_is_no_division_by_zero():
    flat = torch.full((2, 3, 32, 32), 0.5)
    assert patch_distance(flat, flat, kernels()).item() == 0
    assert patch_distance(noise(0)[:2], flat, kernels()).isfinite()


def test_kernels_have_length_one_and_follow_the_step():
    config = TrainConfig(sharpness=1.0)
    first = draw_kernels(config, 3, CPU)
    assert first.shape == (PATCH_KERNELS, 3, 7, 7)
    torch.testing.assert_close(first.flatten(1).norm(dim=1), torch.ones(PATCH_KERNELS))
    assert torch.equal(first, draw_kernels(config, 3, CPU))
    assert not torch.equal(first, draw_kernels(config, 4, CPU))
    assert draw_kernels(dataclasses.replace(config, sharpness=0.0), 3, CPU).shape == (0, 3, 7, 7)


def test_the_weight_is_none_before_the_last_quarter_and_full_after_a_tenth_more():
    weights = [sharpness_weight(step, 1000) for step in range(1000)]
    assert weights[:750] == pytest.approx([0.0] * 750)
    assert weights[799] == pytest.approx(0.5)
    assert set(weights[849:]) == {1.0}
