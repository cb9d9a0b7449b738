"""Which eyes belong together: the loss against its closed form, what is seen of a face, and what is learned."""

from __future__ import annotations

import numpy as np
import torch

from vae_train.adversarial import eyes
from vae_train.adversarial.eyes import EyeMatcher, contrast
from vae_train.engine.rng import EYES, make_generator

LEFT = (slice(None), slice(20, 34), slice(14, 30))
"""Around the left eye of a face of 64x64 pixels."""


def painted(colors):
    """Gray faces (n, 3, 64, 64), the left eye in the first color, the right one in the second: (n, 2, 3)"""
    faces = torch.full((len(colors), 3, 64, 64), 0.5)
    for face, (left, right) in zip(faces, colors, strict=True):
        face[LEFT] = left[:, None, None]
        face[:, 20:34, 34:50] = right[:, None, None]
    return faces


def matcher():
    torch.manual_seed(0)
    return EyeMatcher().eval()


def test_contrast_is_the_mean_cross_entropy_in_both_directions():
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(5, 3)) for _ in range(2))
    scores = 2.5 * left @ right.T
    log_shares = [np.diag(s) - np.log(np.exp(s).sum(1)) for s in (scores, scores.T)]
    found = contrast(torch.from_numpy(left), torch.from_numpy(right), torch.tensor(2.5))
    np.testing.assert_allclose(float(found), -np.mean(log_shares), rtol=1e-6)


def test_a_mirrored_face_matches_as_well():
    faces = torch.rand(3, 3, 64, 64)
    model = matcher()
    torch.testing.assert_close(model(faces), model(faces.flip(3)))


def test_only_the_eyes_are_seen():
    face, model = torch.rand(1, 3, 64, 64, requires_grad=True), matcher()
    model(face).sum().backward()
    rows, columns = face.grad.abs().sum((0, 1)).nonzero().T
    assert rows.min() >= 16  # 0.42 of the height, half of 0.31 of the width to both sides
    assert rows.max() <= 37
    assert set(columns.tolist()) == {c for c in range(64) if 11 <= c <= 31 or 32 <= c <= 52}


def test_alike_eyes_are_learned_from_pairs_alone(monkeypatch):
    monkeypatch.setattr(eyes, "_STEPS", 12)
    monkeypatch.setattr(eyes, "_BATCH", 32)
    rng = torch.Generator().manual_seed(1)
    colors = torch.rand(400, 1, 3, generator=rng).repeat(1, 2, 1)
    real, model = (255 * painted(colors)).byte(), matcher()
    model.fit(real, lambda step: make_generator(0, EYES, step))
    mixed = torch.stack([colors[:, 0], colors.roll(1, 0)[:, 0]], 1)
    assert (model(painted(colors)) > model(painted(mixed))).float().mean() > 0.9
    assert model.loss(painted(mixed), rng) > 3 * model.loss(painted(colors), rng)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_larger_picture_is_seen_alike():
    face, model = painted(torch.rand(2, 2, 3)), matcher()
    larger = torch.nn.functional.interpolate(face, scale_factor=2)
    torch.testing.assert_close(model(larger), model(face), atol=0.02, rtol=0)
