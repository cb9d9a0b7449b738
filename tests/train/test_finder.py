"""Parts of a face that are where they belong: the loss against its closed form, and what is seen of a face."""

from __future__ import annotations

import math

import pytest
import torch

from vae_train.adversarial import finder
from vae_train.adversarial.finder import PartFinder
from vae_train.adversarial.mouth import Mouth
from vae_train.engine.rng import MOUTH, make_generator


def painted(count, down=0, across=0):
    """Gray faces (count, 3, 64, 64) with a red mouth of the same height and another width each."""
    faces = torch.full((count, 3, 64, 64), 0.5)
    for index, face in enumerate(faces):
        half = 5 + index % 3
        face[0, 43 + down : 47 + down, 32 + across - half : 32 + across + half] = 0.9
    return faces


def mouth():
    torch.manual_seed(0)
    return Mouth().eval()


@pytest.fixture(scope="module")
def trained():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finder, "STEPS", 40)
        patch.setattr(finder, "_BATCH", 32)
        model = mouth()
        model.fit((255 * painted(200)).byte(), lambda step: make_generator(0, MOUTH, step))
        return model


def test_who_does_not_know_a_part_loses_the_logarithm_of_two():
    network, face = mouth().finder, torch.rand(2, 3, 64, 64)
    torch.nn.init.zeros_(network.layers[-1].weight)
    torch.nn.init.zeros_(network.layers[-1].bias)
    torch.testing.assert_close(network.loss(face), torch.tensor(math.log(2)))


def test_a_part_is_wanted_at_its_usual_place_and_at_the_mirror_image_of_it():
    network, face = PartFinder((0.34, 0.42), (slice(0, 64), slice(0, 64))).eval(), torch.rand(1, 3, 64, 64)
    logits = torch.zeros(1, 23, 23, requires_grad=True)
    network.forward = lambda image: logits
    network.loss(face).backward()
    places = [(10 + 2 * column, 10 + 2 * row) for row, column in (logits.grad[0] < 0).nonzero().tolist()]
    centers = (0.34 * 64, 0.42 * 64), (64 - 0.34 * 64, 0.42 * 64)
    grid = [(x, y) for y in range(10, 56, 2) for x in range(10, 56, 2)]
    assert places == [place for place in grid if min(math.dist(place, center) for center in centers) < 3]
    assert len(places) == 14


def test_a_place_is_what_is_seen_there():
    face, network = torch.rand(1, 3, 64, 64, requires_grad=True), mouth().finder
    network(face)[0, 5, 7].backward()
    rows, columns = face.grad.abs().sum((0, 1)).nonzero().T
    assert set(rows.tolist()) == set(range(10, 30))
    assert set(columns.tolist()) == set(range(14, 34))
    assert finder._places(8, face.device)[[5, 7]].tolist() == [20, 24]


def test_a_mouth_is_found_where_it_is(trained):
    for down, across in ((0, 0), (4, 0), (0, -5)):
        seen, center = trained.finder.find(painted(9, down, across))
        assert (seen > 0).all()
        wanted = torch.tensor([[32.0 + across, 45.0 + down]]).expand(9, 2)
        torch.testing.assert_close(64 * center, wanted, atol=2.5, rtol=0)


def test_a_mouth_that_is_missing_or_out_of_place_costs(trained):
    missing, far = torch.full((9, 3, 64, 64), 0.5), painted(9, down=-25)
    usual, *faults = (float(trained.loss(faces)) for faces in (painted(9), missing, far))
    assert min(faults) > 3 * usual
    assert (trained(painted(9)) > trained(missing)).all()


def test_what_was_learned_stays(trained):
    assert not any(weight.requires_grad for weight in trained.parameters())
    assert not trained.training


def test_a_larger_picture_is_seen_alike(trained):
    larger = torch.nn.functional.interpolate(painted(6), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(trained(larger), trained(painted(6)), atol=1.0, rtol=0)
