"""Attributes of faces: classifiers of codes, and draws that have what is asked for."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from tiny_model import DIM, SIZE, build_model

from vae_runtime import VAE, Attributes, InputError, InputTypeError, ModelConfig, ModelFileError, Prior

VALUES = {"hair": ("blue", "red", "green"), "eyes": ("dark", "light")}


@pytest.fixture
def attributes(rng):
    return Attributes(VALUES, 3 * rng.normal(size=(5, DIM)), rng.normal(size=5), np.array([0.9, 0.8]))


def model_with(folder, attributes):
    build_model(folder)
    attributes.save(folder / "attributes.npz")
    config = ModelConfig.load(folder)
    digest = hashlib.sha256((folder / "attributes.npz").read_bytes()).hexdigest()
    dataclasses.replace(config, files={**config.files, "attributes.npz": digest}).save(folder)
    return folder


def test_probabilities_are_a_softmax_for_each_column(attributes, rng):
    codes = rng.normal(size=(7, DIM))
    found = attributes.probabilities(codes)
    assert {name: each.shape for name, each in found.items()} == {"hair": (7, 3), "eyes": (7, 2)}
    for each in found.values():
        np.testing.assert_allclose(each.sum(1), 1)
    scores = codes @ attributes.weights[3:].T.astype(float) + attributes.bias[3:]
    np.testing.assert_allclose(found["eyes"][:, 1], 1 / (1 + np.exp(scores[:, 0] - scores[:, 1])), rtol=1e-9)
    where = {"eyes": "light", "hair": "green"}
    joint = np.log(found["eyes"][:, 1]) + np.log(found["hair"][:, 2])
    np.testing.assert_allclose(attributes.log_probability(codes, where), joint)
    assert np.isfinite(attributes.log_probability(codes * 1e4, where)).all()


def test_draws_have_what_is_asked_for_and_are_the_same_each_time(attributes):
    prior, where = Prior.standard(DIM), {"hair": "red", "eyes": "dark"}
    codes = attributes.sample(prior, 200, where, rng=3)
    asked, plain = (np.exp(attributes.log_probability(each, where)) for each in (codes, prior.sample(200, rng=3)))
    assert asked.mean() > max(0.6, 2 * plain.mean())
    np.testing.assert_array_equal(codes, attributes.sample(prior, 200, where, rng=3))
    assert len(np.unique(codes, axis=0)) == 200
    assert attributes.sample(prior, 0, where).shape == (0, DIM)


def test_rare_combinations_are_reached_by_codes_as_likely_as_any(rng):
    """Of the prior's draws none has both; a guide that left the prior would go along axes that it hardly has."""
    stretch = np.diag([1.0] * (DIM - 1) + [0.01])
    prior = Prior(np.ones(1), np.zeros((1, DIM)), stretch[None])
    weights = np.zeros((5, DIM))
    weights[1, [0, -1]], weights[4, [1, -1]] = 6, 6
    attributes = Attributes(VALUES, weights, np.array([0, -18, 0, 0, -15]), np.ones(2))
    where = {"hair": "red", "eyes": "light"}
    assert np.exp(attributes.log_probability(prior.sample(4096, 0), where)).max() < 0.9
    codes = attributes.sample(prior, 32, where, rng=1)
    assert np.exp(attributes.log_probability(codes, where)).min() > 0.9
    assert np.abs(codes[:, -1] / 0.01).max() < 5
    still = attributes.sample(prior, 4, where, rng=1, temperature=0)  # all draws are one code, which stays
    np.testing.assert_array_equal(still, prior.sample(4, 1, temperature=0))


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ({"hair": "bleu"}, InputError, "did you mean 'blue'"),
        ({"hair": 3}, InputError, "blue, red, green"),
        ({"nose": "long"}, InputError, "hair, eyes"),
        ({}, InputTypeError, "where"),
        ("hair=blue", InputTypeError, "where"),
    ],
)
def test_what_does_not_exist_is_named(attributes, where, error, words):
    for call in (
        lambda: attributes.log_probability(np.zeros(DIM), where),
        lambda: attributes.sample(Prior.standard(DIM), 1, where),
    ):
        with pytest.raises(error, match=words):
            call()


def test_the_file(attributes, tmp_path):
    path = attributes.save(tmp_path / "a.npz")
    again = Attributes.load(path)
    assert again.values == VALUES
    for name in ("weights", "bias", "accuracy"):
        np.testing.assert_array_equal(getattr(again, name), getattr(attributes, name))
    assert again.save(tmp_path / "b.npz").read_bytes() == path.read_bytes()
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelFileError, match=r"a\.npz"):
        Attributes.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": {}},
        {"values": {"hair": ("a",), "eyes": ("a", "b", "c", "d")}},
        {"values": {"hair": ("a", "a", "b"), "eyes": ("a", "b")}},
        {"values": {"hair": ("a", "b\x1b[31m", "c"), "eyes": ("a", "b")}},
        {"values": {"ha\nir": ("a", "b", "c"), "eyes": ("a", "b")}},
        {"weights": np.zeros((4, DIM))},
        {"weights": np.full((5, DIM), np.nan)},
        {"accuracy": np.zeros(1)},
    ],
)
def test_invalid_ones_are_refused(attributes, changes):
    with pytest.raises(InputError, match="attributes"):
        dataclasses.replace(attributes, **changes)


def test_the_verbs(attributes, tmp_path, rng):
    vae = VAE.load(model_with(tmp_path / "m", attributes), device="cpu")
    faces = rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    expected = attributes.probabilities(vae.encode(faces)[0])
    for name, each in vae.attributes(faces).items():
        np.testing.assert_array_equal(each, expected[name])
    where = {"hair": "blue"}
    codes = attributes.sample(vae.prior, 5, where, rng=1)
    np.testing.assert_array_equal(vae.sample(5, rng=1, where=where), vae.decode(codes))
    with pytest.raises(InputError, match="expected one of"):
        vae.sample(1, where={"hair": "plaid"})


def test_a_model_without_them_says_so(tiny, rng):
    vae = VAE.load(tiny.folder, device="cpu")
    assert vae.classifiers is None
    for call in (lambda: vae.attributes([]), lambda: vae.sample(1, where={"hair": "blue"})):
        with pytest.raises(InputError, match="attributes"):
            call()


def test_those_of_another_latent_dim_are_refused(tmp_path):
    wrong = Attributes(VALUES, np.zeros((5, DIM + 1)), np.zeros(5), np.zeros(2))
    with pytest.raises(ModelFileError, match=r"attributes\.npz"):
        VAE.load(model_with(tmp_path / "m", wrong), device="cpu")
