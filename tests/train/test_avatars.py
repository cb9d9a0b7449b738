from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from vae_train.data.avatars import choose_attributes, draw, draw_many, draw_svg


def test_a_face_depends_on_seed_and_index_alone():
    first, labels = draw(3, 32, seed=1)
    again, labels_again = draw(3, 32, seed=1)
    np.testing.assert_array_equal(first, again)
    assert labels == labels_again
    assert (draw(4, 32, seed=1)[0] != first).any()
    assert (draw(3, 32, seed=2)[0] != first).any()


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter():
    one = list(draw_many(260, 16, seed=5, processes=1))
    two = list(draw_many(260, 16, seed=5, processes=2))
    assert [labels for _, labels in one] == [labels for _, labels in two]
    np.testing.assert_array_equal([pixels for pixels, _ in one], [pixels for pixels, _ in two])


@pytest.mark.slow
def test_a_script_without_a_main_guard_says_so(tmp_path):
    # Its processes import it, and would wait for the cache entry that it is filling.
    script = tmp_path / "script.py"
    script.write_text(
        "from vae_train.data import avatars, faces\n"
        "avatars._usable_cores = lambda: range(2)\n"
        "faces.load_faces('avatars', 16, 300, 0)\n"
    )
    environment = os.environ | {"ANIME_VAE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vae_train.errors.DataError: ")
    assert "__main__" in done.stderr.splitlines()[-1]


def test_labels_name_what_is_drawn():
    bald = choose_attributes(0, 0) | {"hair": "NONE", "hat": "NONE", "glasses": "NONE", "beard": "NONE"}
    for attribute, value in {
        "glasses": "SUNGLASSES",
        "beard": "BEARD_MAGESTIC",
        "hair": "BIG_HAIR",
        "hat": "HIJAB",
    }.items():
        assert draw_svg(bald | {attribute: value}) != draw_svg(bald), attribute
    colors = {"skin": ("PALE", "BLACK"), "clothes_color": ("RED", "WHITE"), "mouth": ("SAD", "SMILE")}
    for attribute, (one, other) in colors.items():
        assert draw_svg(bald | {attribute: one}) != draw_svg(bald | {attribute: other}), attribute
    attributes = {"hair", "hat", "hair_color", "skin", "glasses", "beard", "mouth", "clothes"}
    assert attributes <= bald.keys()


def test_every_part_can_be_drawn():
    """Each value of each attribute, in as few faces as there are values of the longest one."""
    from vae_train.data import avatars

    parts = {
        "hair": avatars._HAIR,
        "hat": avatars._HATS,
        "hair_color": sorted(avatars._HAIR_COLORS),
        "skin": avatars._SKINS,
        "eyes": avatars._EYES,
        "eyebrows": avatars._EYEBROWS,
        "nose": avatars._NOSES,
        "mouth": avatars._MOUTHS,
        "beard": avatars._BEARDS,
        "glasses": avatars._GLASSES,
        "clothes": avatars._CLOTHES,
        "clothes_color": avatars._CLOTHES_COLORS,
    }
    base = choose_attributes(0, 0)
    for index in range(max(map(len, parts.values()))):
        chosen = {name: values[index % len(values)] for name, values in parts.items() if name != "hat"}
        assert 'viewBox="30 12' in draw_svg(base | chosen | {"hat": "NONE"})
    for hat in avatars._HATS:
        draw_svg(base | {"hat": hat})


def test_faces_are_varied_pictures():
    faces = np.stack([pixels for pixels, _ in draw_many(64, 32, seed=0)])
    assert faces.shape == (64, 32, 32, 3)
    assert len(np.unique(faces.reshape(64, -1), axis=0)) == 64
    assert faces.std(axis=0).mean() > 30
    labels = [choose_attributes(0, index) for index in range(500)]
    for attribute in labels[0]:
        assert len({face[attribute] for face in labels}) >= 3, attribute
    assert all(face["hair"] == "NONE" for face in labels if face["hat"] != "NONE")
