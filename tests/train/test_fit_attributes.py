"""Classifiers of codes, fitted to labels."""

from __future__ import annotations

import numpy as np

from vae_train.export.fit_attributes import FEWEST, fit_attributes

DIM = 6


def labeled(rng, count):
    """Codes whose first numbers say what hair and glasses a face has, with some labels missing."""
    codes = rng.normal(size=(count, DIM)).astype(np.float32)
    hair = [["red", "blue", "green"][np.argmax(code[:3])] for code in codes]
    glasses = ["yes" if code[3] > 0 else "no" for code in codes]
    for row in rng.choice(count, count // 10, replace=False):
        hair[row] = None
    hair[:3] = ["plaid"] * 3
    return codes, {"hair": hair, "glasses": glasses, "same": ["x"] * count, "rare": [str(row) for row in range(count)]}


def test_what_codes_tell_is_learned_and_the_rest_left_out(rng):
    (train, labels), held_out = labeled(rng, 1000), labeled(rng, 400)
    found = fit_attributes(train[None], labels, *held_out)
    assert found is not None
    assert found.values == {"hair": ("blue", "green", "red"), "glasses": ("no", "yes")}
    assert (found.accuracy > 0.9).all()
    codes, labels = held_out
    glasses = found.probabilities(codes)["glasses"]
    right = np.array(found.values["glasses"])[glasses.argmax(1)] == labels["glasses"]
    assert np.isclose(right.mean(), found.accuracy[1])
    np.testing.assert_allclose(glasses.sum(1), 1)


def test_without_a_column_of_common_values_there_are_none(rng):
    codes, _ = labeled(rng, 100)
    nothing = {"name": [str(row) for row in range(100)], "few": ["a"] * (FEWEST - 1) + ["b"] * (101 - FEWEST)}
    assert fit_attributes(codes[None], nothing, codes, nothing) is None
    assert fit_attributes(codes[None], {}, codes, {}) is None


def test_probabilities_are_as_sure_as_they_are_right(rng):
    """Heavy tails would make those of Gaussian densities too unsure; a second view of each picture counts as one."""

    def draw(count):
        marks = rng.integers(0, 3, count)
        codes = 2 * np.eye(3, DIM)[marks] + rng.standard_t(3, size=(count, DIM))
        return codes.astype(np.float32), {"kind": ["abc"[mark] for mark in marks]}

    (codes, labels), held_out = draw(3000), draw(2000)
    found = fit_attributes(np.stack([codes, codes]), labels, *held_out)
    assert found is not None
    assert abs(found.probabilities(held_out[0])["kind"].max(1).mean() - found.accuracy[0]) < 0.06


def test_more_numbers_than_pictures_are_no_harm(rng):
    """As with 60 pictures of a model of 512 latents: the covariance is singular."""
    codes = rng.normal(size=(60, 500)).astype(np.float32)
    labels = {"kind": ["a", "b"] * 30}
    codes[::2, 0] += 8
    found = fit_attributes(codes[None], labels, codes, labels)
    assert found is not None
    assert found.accuracy[0] > 0.9
