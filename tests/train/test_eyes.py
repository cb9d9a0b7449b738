"""Eyes that are there and belong together: the losses against their closed forms, what is seen of a face, and what is
learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vae_train.adversarial import eyes, finder
from vae_train.adversarial.eyes import Eyes, contrast
from vae_train.engine.rng import EYES, make_generator


def painted(colors, down=0):
    """Gray faces (n, 3, 64, 64), the left eye in the first color, the right one in the second: (n, 2, 3)"""
    faces = torch.full((len(colors), 3, 64, 64), 0.5)
    for face, (left, right) in zip(faces, colors, strict=True):
        face[:, 20 + down : 34 + down, 14:30] = left[:, None, None]
        face[:, 20 + down : 34 + down, 34:50] = right[:, None, None]
    return faces


def some_colors(count):
    """Of eyes that belong together: (count, 2, 3)"""
    return torch.rand(count, 1, 3, generator=torch.Generator().manual_seed(1)).round().repeat(1, 2, 1) * 0.9


def untrained():
    torch.manual_seed(0)
    return Eyes().eval()


@pytest.fixture(scope="module")
def trained():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finder, "STEPS", 40)
        patch.setattr(eyes, "_STEPS", 15)
        patch.setattr(finder, "_BATCH", 32)
        patch.setattr(eyes, "_BATCH", 32)
        model = untrained()
        real = (255 * painted(some_colors(200))).byte()
        model.fit(real, lambda step: make_generator(0, EYES, step))
        return model


def test_contrast_is_the_mean_cross_entropy_in_both_directions():
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(5, 3)) for _ in range(2))
    scores = 2.5 * left @ right.T
    log_shares = [np.diag(s) - np.log(np.exp(s).sum(1)) for s in (scores, scores.T)]
    found = contrast(torch.from_numpy(left), torch.from_numpy(right), torch.tensor(2.5))
    np.testing.assert_allclose(float(found), -np.mean(log_shares), rtol=1e-6)


def test_a_mirrored_face_is_seen_alike():
    faces, model = torch.rand(3, 3, 64, 64), untrained()
    for found, mirrored in zip(model(faces), model(faces.flip(3)), strict=True):
        torch.testing.assert_close(found, mirrored)


def test_only_the_eyes_and_their_surroundings_are_seen():
    face, model = torch.rand(1, 3, 64, 64, requires_grad=True), untrained()
    torch.stack(model(face)).sum().backward()
    rows = face.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.min() >= 4
    assert rows.max() < 50


def test_eyes_are_found_where_they_are(trained):
    for down in (0, 5):
        seen, center = trained.finder.find(painted(some_colors(20), down))
        assert (seen > 0).all()
        torch.testing.assert_close(64 * center, torch.tensor([[22.0, 27.0 + down]]).expand(20, 2), atol=2.5, rtol=0)


def test_eyes_that_are_missing_or_unlike_cost(trained):
    colors = some_colors(60)
    whole, unlike, missing = painted(colors), colors.clone(), painted(colors)
    unlike[:, 1] = 0.9 - unlike[:, 1]
    unlike = painted(unlike)
    missing[:, :, :, 32:] = 0.5
    (seen, alike), (_, not_alike), (not_seen, _) = (trained(faces) for faces in (whole, unlike, missing))
    assert (seen > not_seen).all()
    assert (alike > not_alike).float().mean() > 0.9
    loss = [float(trained.loss(faces, torch.Generator().manual_seed(0))) for faces in (whole, unlike, missing)]
    assert min(loss[1:]) > 3 * loss[0]


def test_what_was_learned_stays(trained):
    assert not any(weight.requires_grad for weight in trained.parameters())
    assert not trained.training


def test_a_larger_picture_is_seen_alike(trained):
    face = painted(some_colors(4))
    larger = torch.nn.functional.interpolate(face, scale_factor=2, mode="bilinear")
    for found, wanted, tolerance in zip(trained(larger), trained(face), (1.0, 0.05), strict=True):
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)
