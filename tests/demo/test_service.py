"""What the tabs answer, without a page: the verbs of vae_runtime, and sentences for what strangers send."""

from __future__ import annotations

import math

import numpy as np
import pytest

from demo.evolution import SIZE, Lineage, replay
from demo.service import MAX_STRENGTH, OPEN_SLIDERS, Service, check_int, check_number, strongest
from demo.tabs.base import Models
from demo.tabs.sample import SampleTab
from vae_runtime import InputError
from vae_runtime.attributes import Attributes
from vae_runtime.images import psnr
from vae_runtime.prior import Prior


@pytest.fixture(params=[0, 1], ids=["bundled", "furnished"])
def service(vaes, request):
    return Service(vaes[request.param])


def test_each_tab_gives_what_the_runtime_gives(service):
    vae = service.vae
    faces = vae.sample(4, rng=3)
    assert np.array_equal(service.sample(4, 3), faces)
    found = service.reconstruct(faces[0])
    assert np.array_equal(found.face, vae.reconstruct(faces[0])[0])
    assert np.array_equal(service.blend(faces[:2], 5), vae.interpolate(faces[0], faces[1], 5))
    assert np.array_equal(service.edit(faces[0], {}), found.face)
    a, b, c = vae.encode(faces[:3])[0]
    assert np.array_equal(service.analogy(*faces[:3]), vae.decode(a - b + c)[0])


def test_a_square_has_the_four_in_its_corners_and_a_loop_meets_each(service):
    faces = service.sample(4, 1)
    again = service.vae.reconstruct(faces)
    square = service.square(faces)
    assert np.array_equal(square[[0, 6, 42, 48]], again)
    assert service.square(faces[:3]) is None
    assert np.array_equal(service.loop(faces)[::24], again)


def test_sliders_are_the_models_directions_what_it_named_first(vaes):
    service = Service(vaes[1])
    board = service.board({"smile": 1.0})
    assert (board.groups[0].title, board.groups[0].names) == ("Look", (("smile", "Smile"),))
    assert [name for group in board.groups[1:] for name, _ in group.names] == ["pca-1", "pca-2"]
    assert board.groups[-1].folded
    assert board.strengths == {"smile": 1.0}
    face = service.sample(1, 0)[0]
    assert np.array_equal(service.edit(face, {"smile": 2}), service.vae.edit(face, "smile", 2)[0])
    for strengths, word in (
        ({"smile": 3.5}, "smile: got 3.5"),
        ({"nose": 1}, "'nose'"),
        (7, "strengths"),
        ({"smile": "1"}, "smile"),
    ):
        with pytest.raises(InputError, match=word):
            service.edit(face, strengths)


def test_many_sliders_are_grouped_by_their_prefix_and_few_are_open(vaes):
    service = Service(vaes[1])
    names = ["glasses", "beard", *(f"hair-{color}" for color in "abcdefghijklm"), "skin-pale", "pca-1"]
    service.directions = dict.fromkeys(names, np.ones(4, np.float32))
    board = service.board()
    assert [group.title for group in board.groups][:3] == ["Look", "Hair color", "Skin"]
    assert sum(len(group.names) for group in board.groups if not group.folded) <= OPEN_SLIDERS
    assert sorted(name for group in board.groups for name, _ in group.names) == sorted(names)


def test_a_face_travels_in_a_link_as_its_code(service):
    face = service.sample(1, 5)[0]
    token = service.token(face)
    again = service.face_of_token(token)
    assert psnr(again, service.vae.reconstruct(face)[0]) > 35
    for wrong in ("", token[:-8], token + "AAAAAAAA", "A" * 685, "../../etc", None, 7):
        with pytest.raises(InputError, match="face"):
            service.face_of_token(wrong)


def test_new_faces_can_be_limited_where_the_model_has_classifiers(vaes, monkeypatch):
    vae = vaes[1]
    weights = np.array([[4, 0, 0, 0], [-4, 0, 0, 0]], np.float32)
    classifiers = Attributes({"hair": ("blue", "red")}, weights, np.zeros(2, np.float32), np.ones(1, np.float32))
    monkeypatch.setattr(vae, "classifiers", classifiers)
    service = Service(vae)
    assert service.choices == [("Hair: blue", "hair=blue"), ("Hair: red", "hair=red")]
    assert np.array_equal(service.sample(3, 1, where=["hair=red"]), vae.sample(3, rng=1, where={"hair": "red"}))
    for where in (["hair=green"], ["nose=red"], ["hair"], "hair=red", [7], {"hair": "red"}):
        with pytest.raises(InputError):
            service.sample(3, 1, where=where)


def test_starters_are_recognized_by_the_service_they_belong_to(vaes):
    first, second = (Service(vae) for vae in vaes)
    assert first.is_starter(first.starter_faces[0])
    assert first.is_starter(first.examples[0])
    assert not second.is_starter(first.starter_faces[0])


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e400, 10**400, True, "3", None, [3], {"a": 1}])
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(InputError, match="seed"):
        check_number(value, "seed", 0, MAX_STRENGTH)


def test_whole_numbers_may_come_as_floats():
    assert check_int(7.0, "seed", 0, 9) == 7
    with pytest.raises(InputError, match="seed"):
        check_int(7.5, "seed", 0, 9)


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


@pytest.mark.parametrize("where", [5, [[1]], {"hair": "red"}])
def test_a_limit_that_is_no_list_of_texts_is_refused_when_the_model_changes(vaes, where):
    models = Models([Service(vaes[0])])
    with pytest.raises(InputError, match="where"):
        SampleTab(models).draw(models.first, {"where": where, "switched": True})
