"""What the tabs answer, without a page: the verbs of vae_runtime, and sentences for what strangers send."""

from __future__ import annotations

import math

import numpy as np
import pytest

from demo.evolution import SIZE, Lineage, replay
from demo.service import STRENGTH, Studio, psnr, real, strongest, whole
from vae_runtime import InputError
from vae_runtime.prior import Prior


@pytest.fixture(params=[0, 1], ids=["bundled", "furnished"])
def studio(vaes, request):
    return Studio(vaes[request.param])


def test_each_tab_gives_what_the_runtime_gives(studio):
    vae = studio.vae
    faces = vae.sample(4, rng=3)
    assert np.array_equal(studio.sample(4, 3), faces)
    found = studio.reconstruct(faces[0])
    assert np.array_equal(found.face, vae.reconstruct(faces[0])[0])
    assert np.array_equal(studio.strip(faces[:2], 5), vae.interpolate(faces[0], faces[1], 5))
    assert np.array_equal(studio.edit(faces[0], []), found.face)
    a, b, c = vae.encode(faces[:3])[0]
    assert np.array_equal(studio.analogy(*faces[:3]), vae.decode(a - b + c)[0])


def test_a_square_has_the_four_in_its_corners_and_a_loop_meets_each(studio):
    faces = studio.sample(4, 1)
    again = studio.vae.reconstruct(faces)
    square = studio.square(faces)
    assert np.array_equal(square[[0, 6, 42, 48]], again)
    assert len(studio.square(faces[:3])) == 0
    assert np.array_equal(studio.loop(faces)[::24], again)


def test_sliders_move_along_the_models_directions(vaes):
    studio = Studio(vaes[1])
    assert [slider.label for slider in studio.strong] == ["Direction 1", "Direction 2"]
    assert [slider.label for slider in studio.named] == ["Smile"]
    face = studio.sample(1, 0)[0]
    assert np.array_equal(studio.edit(face, [0, 0, 2]), studio.vae.edit(face, "smile", 2)[0])
    with pytest.raises(InputError, match=r"Smile: got 3\.5, expected -3 to 3"):
        studio.edit(face, [0, 0, 3.5])


def test_without_directions_the_sliders_move_the_picture_most(vaes):
    vae = vaes[0]
    steps = strongest(vae, 8)
    mean = vae.decode(np.zeros(vae.latent_dim)).astype(float)
    moved = [np.abs(vae.decode(2 * step).astype(float) - mean).mean() for step in steps]
    # A direction by chance: as far from the mean as one deviation of the codes, anywhere.
    codes = vae.prior.sample(512, rng=1)
    chance = (codes[:32] - codes.mean(axis=0)) / math.sqrt(vae.latent_dim)
    by_chance = np.mean([np.abs(vae.decode(2 * step).astype(float) - mean).mean() for step in chance])
    assert moved[0] > 2 * by_chance
    assert min(moved) > by_chance


def test_psnr_is_that_of_the_definition():
    black = np.zeros((2, 2, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == 0
    assert psnr(black, black + 51) == pytest.approx(20 * math.log10(5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e400, True, "3", None, [3], {"a": 1}])
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(InputError, match="seed: "):
        real(value, "seed", 0, STRENGTH)


def test_whole_numbers_may_come_as_floats():
    assert whole(7.0, "seed", 0, 9) == 7
    with pytest.raises(InputError, match=r"seed: got 7\.5, expected a whole number"):
        whole(7.5, "seed", 0, 9)


def test_a_lineage_is_its_text_and_draws_the_same_faces_again(vaes):
    line = Lineage(7).child((5, 3, 3), 40).child((1,), 0)
    assert str(line) == "7-3.5x40-1x0"
    assert Lineage.parse(str(line)) == line
    prior = vaes[1].prior
    assert np.array_equal(replay(prior, line), replay(prior, Lineage.parse(str(line))))
    assert not np.array_equal(replay(prior, line), replay(prior, Lineage.parse("7-3.5x40-2x0")))


def test_a_single_parent_without_mutation_has_its_own_likes(vaes):
    prior = vaes[1].prior
    parents, children = replay(prior, Lineage(7)), replay(prior, Lineage.parse("7-4x0"))
    np.testing.assert_allclose(children, np.repeat(parents[4:5], SIZE, axis=0), atol=1e-6)


def test_full_mutation_forgets_the_parents_and_keeps_the_prior():
    prior = Prior.standard(2000)
    codes = replay(prior, Lineage.parse("7-4x100"))
    assert abs(np.corrcoef(codes[0], replay(prior, Lineage(7))[4])[0, 1]) < 0.1
    assert codes.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "text", ["", "x", "7-", "7-x40", "7-16x40", "7-1x101", "7-1x40-", "-7", "7 ", "7" * 11, "7" + "-1x1" * 101, None, 7]
)
def test_a_text_that_is_no_lineage_is_refused(text):
    with pytest.raises(InputError, match="lineage: "):
        Lineage.parse(text)
