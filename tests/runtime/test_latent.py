from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vae_runtime.errors import InputError, InputTypeError
from vae_runtime.latent import interpolate, kl_divergence, lerp, make_rng, reparameterize, slerp

PAIRS = hnp.arrays(np.float64, (2, 6), elements=st.floats(-1e6, 1e6))


def test_reparameterize_is_mu_plus_sigma_times_eps(rng):
    mu, logvar = rng.normal(size=(2, 5, 7)).astype(np.float32)
    eps = np.random.default_rng(3).standard_normal((5, 7))
    expected = mu + np.exp(logvar / 2) * eps
    z = reparameterize(mu, logvar, rng=3)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(z, reparameterize(mu, logvar, rng=np.random.default_rng(3)))


def test_reparameterize_has_the_moments_of_q():
    n = 200_000
    z = reparameterize(np.full((n, 1), 2.0), np.full((n, 1), np.log(9.0)), rng=0)
    assert z.mean() == pytest.approx(2.0, abs=0.03)
    assert z.std() == pytest.approx(3.0, abs=0.03)


def test_reparameterize_survives_extreme_logvar():
    z = reparameterize(np.zeros(4), np.array([200.0, -200.0, 1e30, 0.0]), rng=0)
    assert np.isfinite(z).all()
    assert np.abs(z[1]) < 1e-5


@pytest.mark.parametrize(
    ("mu", "logvar", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, -2.0], [0.0, 0.0], 2.5),  # |mu|^2 / 2
        ([0.0], [np.log(4.0)], 0.5 * (4 - 1 - np.log(4.0))),
    ],
)
def test_kl_closed_form(mu, logvar, expected):
    assert kl_divergence(mu, logvar) == pytest.approx(expected, abs=1e-12)


def test_kl_agrees_with_the_integral():
    """Independent oracle: KL as the integral of q log(q / p) on a fine grid."""
    mu, logvar = 0.7, -0.9
    x, step = np.linspace(-12, 12, 400_001, retstep=True)
    log_q = -0.5 * (np.log(2 * np.pi) + logvar + (x - mu) ** 2 / np.exp(logvar))
    log_p = -0.5 * (np.log(2 * np.pi) + x**2)
    assert kl_divergence([mu], [logvar]) == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum() * step, abs=1e-8)


@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=32)))
def test_kl_is_never_negative(pair):
    assert kl_divergence(pair[0], pair[1]) >= 0


def test_kl_sums_the_last_axis_only(rng):
    mu, logvar = rng.normal(size=(2, 4, 3, 5))
    assert kl_divergence(mu, logvar).shape == (4, 3)


def test_slerp_on_the_unit_circle_turns_at_constant_speed():
    t = np.linspace(0, 1, 9)
    path = slerp(np.array([1.0, 0.0]), np.array([0.0, 1.0]), t)
    np.testing.assert_allclose(path, np.stack([np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)], -1), atol=1e-15)


def test_slerp_is_the_textbook_formula(rng):
    a, b = rng.normal(size=(2, 20, 128))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    w = np.arccos(cosine)[:, None]
    for t in (0.1, 0.5, 0.8):
        expected = np.sin((1 - t) * w) / np.sin(w) * a + np.sin(t * w) / np.sin(w) * b
        np.testing.assert_allclose(slerp(a, b, t), expected, rtol=1e-9)


@pytest.mark.parametrize("between", [slerp, lerp])
@given(pair=PAIRS)
def test_ends_are_exact_and_all_is_finite(between, pair):
    a, b = pair
    path = between(a, b, np.linspace(0, 1, 5))
    np.testing.assert_array_equal(path[0], a)
    np.testing.assert_array_equal(path[-1], b)
    assert np.isfinite(path).all()


@pytest.mark.parametrize("between", [slerp, lerp])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends_are_exact_in_both_precisions(between, dtype, rng):
    a, b = rng.normal(size=(2, 128)).astype(dtype)
    assert between(a, b, 0.3).dtype == dtype
    np.testing.assert_array_equal(between(a, b, 0.0), a)
    np.testing.assert_array_equal(between(a, b, 1.0), b)


def test_slerp_of_parallel_vectors_is_the_line(rng):
    a = rng.normal(size=16)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, rtol=1e-12)
    np.testing.assert_allclose(slerp(a, 3 * a, 0.5), 2 * a, rtol=1e-12)
    np.testing.assert_allclose(slerp(a, a * (1 + 1e-9), 0.5), a, rtol=1e-6)


def test_slerp_of_opposite_vectors_turns_half_a_circle(rng):
    a = rng.normal(size=16)
    path = slerp(a, -a, np.linspace(0, 1, 11))
    np.testing.assert_allclose(np.linalg.norm(path, axis=-1), np.linalg.norm(a), rtol=1e-9)
    angles = np.arccos(np.clip(path @ a / (a @ a), -1, 1))
    np.testing.assert_allclose(angles, np.linspace(0, np.pi, 11), atol=1e-6)
    lengths = np.linalg.norm(slerp(a, -2 * a, np.linspace(0, 1, 5)), axis=-1)
    np.testing.assert_allclose(lengths, np.linalg.norm(a) * np.array([1, 1.25, 1.5, 1.75, 2]), rtol=1e-9)


@pytest.mark.parametrize("tilt", [0.0, 1e-12, 1e-8, 1e-5, 5e-4])
def test_slerp_is_stable_near_opposite_vectors(tilt):
    a, b = np.array([1.0, 0.0, 0.0]), np.array([-1.0, tilt, 0.0])
    b /= np.linalg.norm(b)
    np.testing.assert_allclose(np.linalg.norm(slerp(a, b, np.linspace(0, 1, 21)), axis=-1), 1, atol=1e-6)


def test_slerp_of_zero_vectors_is_the_line(rng):
    a, zero = rng.normal(size=5), np.zeros(5)
    np.testing.assert_array_equal(slerp(zero, zero, 0.5), zero)
    np.testing.assert_allclose(slerp(zero, a, 0.25), a / 4)
    np.testing.assert_allclose(slerp(a, zero, 0.25), a * 0.75)


def test_slerp_treats_each_row_for_itself():
    a = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    b = np.array([[0.0, 1.0], [2.0, 2.0], [-1.0, 0.0]])
    path = slerp(a, b, np.linspace(0, 1, 5)[:, None])
    assert path.shape == (5, 3, 2)
    for row in range(3):
        np.testing.assert_allclose(path[:, row], slerp(a[row], b[row], np.linspace(0, 1, 5)))


def test_slerp_in_one_dimension_and_with_huge_numbers():
    np.testing.assert_allclose(slerp([1.0], [-1.0], 0.5), [0.0])
    assert np.isfinite(slerp([1e200, 0.0], [0.0, 1e200], 0.5)).all()


def test_lerp_is_the_line():
    np.testing.assert_array_equal(lerp([0.0, 2.0], [4.0, -2.0], 0.25), [1.0, 1.0])


def test_interpolate_counts_its_steps(rng):
    a, b = rng.normal(size=(2, 128))
    for method in ("slerp", "lerp"):
        path = interpolate(a, b, steps=7, method=method)
        assert path.shape == (7, 128)
        np.testing.assert_array_equal(path[[0, -1]], [a, b])
    assert interpolate(np.zeros((3, 4)), np.ones((3, 4)), 2).shape == (2, 3, 4)


@pytest.mark.parametrize("steps", [1, 0, -3, 10**9])
def test_interpolate_refuses_step_counts(steps):
    with pytest.raises(InputError, match="steps"):
        interpolate([0.0], [1.0], steps)


def test_interpolate_refuses_other_arguments():
    with pytest.raises(InputTypeError, match="steps"):
        interpolate([0.0], [1.0], 2.5)
    with pytest.raises(InputError, match="'slerp' or 'lerp'"):
        interpolate([0.0], [1.0], method="cubic")
    with pytest.raises(InputError, match="shapes"):
        interpolate([0.0, 1.0], [1.0])


@pytest.mark.parametrize("t", [-0.1, 1.1, [0.0, 2.0]])
def test_time_outside_the_path_is_refused(t):
    with pytest.raises(InputError, match="t: got"):
        lerp([0.0], [1.0], t)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_numbers_are_refused_with_their_index(bad):
    a = np.zeros((2, 3))
    a[1, 2] = bad
    with pytest.raises(InputError, match=r"\(1, 2\)"):
        slerp(a, np.zeros((2, 3)), 0.5)


def test_byte_order_and_views_do_not_matter(rng):
    mu, logvar = rng.normal(size=(2, 3, 8))
    expected = reparameterize(mu, logvar, rng=0)
    np.testing.assert_array_equal(reparameterize(mu.astype(">f8"), logvar[:, ::-1][:, ::-1], rng=0), expected)


@pytest.mark.parametrize("seed", [-1, np.int64(-5)])
def test_negative_seeds_are_refused(seed):
    with pytest.raises(InputError, match="seed"):
        make_rng(seed)


@pytest.mark.parametrize("seed", [1.5, "0", True, [1]])
def test_seeds_of_other_types_are_refused(seed):
    with pytest.raises(InputTypeError, match="rng"):
        make_rng(seed)


def test_seeds_of_any_size_and_integer_type_work():
    assert make_rng(2**200).random() == np.random.default_rng(2**200).random()
    assert make_rng(np.int32(7)).random() == np.random.default_rng(7).random()


@pytest.mark.parametrize("value", [None, "a", [None], np.array(["x"]), np.array([1j])])
def test_latents_of_other_types_are_refused(value):
    with pytest.raises((InputTypeError, InputError)):
        kl_divergence(value, value)
