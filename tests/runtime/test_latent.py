from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vae_runtime import (
    analogy,
    attribute_direction,
    grid,
    interpolate,
    kl_divergence,
    lerp,
    nearest,
    path,
    pca_directions,
    percentile,
    reparameterize,
    slerp,
    traverse,
)
from vae_runtime.checks import check_count, check_number, make_rng
from vae_runtime.errors import InputError, InputTypeError

PAIRS = hnp.arrays(np.float64, (2, 6), elements=st.floats(-1e6, 1e6))


class Tensor:
    """A torch tensor as far as it matters: it does not convert itself while it needs a gradient or is in bfloat16."""

    def __init__(self, values, dtype="torch.float32", grad=True):
        self.values, self.dtype, self.grad = np.asarray(values, np.float32), dtype, grad

    def detach(self):
        return Tensor(self.values, self.dtype, grad=False)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values, grad=self.grad)

    def __array__(self, dtype=None, copy=None):
        if self.grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_torch_tensors_are_arrays(dtype):
    a, b = Tensor([0.0, 2.0], dtype), Tensor([2.0, 0.0], dtype)
    np.testing.assert_array_equal(lerp(a, b, 0.5), [1, 1])
    np.testing.assert_array_equal(path([a, b], 1), [[0, 2], [2, 0]])


def test_objects_that_cannot_become_arrays_are_refused():
    class Odd:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("on another planet")

    for value in (Odd(), {"a": 1}, {1.0}, object()):
        with pytest.raises(InputTypeError, match="mu"):
            kl_divergence(value, [1.0])


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


@pytest.mark.parametrize("wrong", [["lerp"], np.zeros(3), None])
def test_a_choice_of_another_type_is_refused_by_name(wrong):
    codes = np.eye(4)
    with pytest.raises(InputError, match="method: got"):
        interpolate(codes[0], codes[1], method=wrong)
    with pytest.raises(InputError, match="method: got"):
        path(codes, method=wrong)
    with pytest.raises(InputError, match="method: got"):
        attribute_direction(codes, [0, 1, 0, 1], wrong)
    with pytest.raises(InputError, match="metric: got"):
        nearest(codes, codes, 1, wrong)


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**5000], ids=["400", "-400", "5000"])
def test_integers_beyond_every_float_are_refused(number):
    with pytest.raises(InputError, match=r"temperature: got -?inf"):
        check_number(number, "temperature", 0, 10)
    with pytest.raises(InputError, match="steps: got an integer of more than 20 digits"):
        check_count(number, "steps", 2, 10)


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


# ---- paths, grids, directions, neighbours ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["catmull-rom", "slerp", "lerp"])
def test_a_path_meets_every_key(method, rng):
    keys = rng.normal(size=(5, 16)).astype(np.float32)
    way, loop = path(keys, 6, method), path(keys, 6, method, closed=True)
    assert way.dtype == loop.dtype == np.float32
    assert (way.shape, loop.shape) == ((25, 16), (30, 16))
    np.testing.assert_array_equal(way[::6], keys)
    np.testing.assert_array_equal(loop[::6], keys)


def test_catmull_rom_is_exact_on_lines_and_smooth_in_its_keys(rng):
    line = np.outer(np.arange(5.0), [1.0, 2.0])
    np.testing.assert_allclose(path(line, 4), np.outer(np.arange(17) / 4, [1.0, 2.0]), atol=1e-12)
    keys, steps = rng.normal(size=(6, 3)), 1000
    loop = path(keys, steps, closed=True)
    before, after = loop - np.roll(loop, 1, 0), np.roll(loop, -1, 0) - loop
    slope = (np.roll(keys, -1, 0) - np.roll(keys, 1, 0)) / 2  # of the spline at its keys, by definition
    np.testing.assert_allclose(before[::steps] * steps, slope, atol=0.05)
    np.testing.assert_allclose(after[::steps] * steps, slope, atol=0.05)


def test_a_path_by_slerp_stays_on_the_sphere(rng):
    keys = rng.normal(size=(4, 8))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(path(keys, 7, "slerp", closed=True), axis=1), 1, rtol=1e-12)


def test_paths_refuse_what_makes_no_way():
    for keys, steps, said in ((np.zeros((1, 3)), 4, "keys"), (np.zeros((2, 3)), 0, "steps"), (np.zeros(3), 4, "keys")):
        with pytest.raises(InputError, match=said):
            path(keys, steps)
    with pytest.raises(InputError, match="method"):
        path(np.zeros((2, 3)), 4, "bezier")


def test_a_grid_has_its_corners_and_its_sides(rng):
    corners = rng.normal(size=(4, 5))
    square = grid(corners, 3, 4, "lerp")
    assert square.shape == (3, 4, 5)
    np.testing.assert_array_equal(square[[0, 0, -1, -1], [0, -1, 0, -1]], corners)
    u, v = np.linspace(0, 1, 3)[:, None, None], np.linspace(0, 1, 4)[None, :, None]
    a, b, c, d = corners
    np.testing.assert_allclose(square, (1 - u) * ((1 - v) * a + v * b) + u * ((1 - v) * c + v * d), atol=1e-12)
    with pytest.raises(InputError, match="corners"):
        grid(corners[:3])


def test_a_traversal_changes_one_number(rng):
    z = rng.normal(size=6)
    codes = traverse(z, 2, [-3.0, 0.0, 3.0])
    np.testing.assert_array_equal(codes[:, 2], [-3, 0, 3])
    np.testing.assert_array_equal(np.delete(codes, 2, 1), np.repeat(np.delete(z, 2)[None], 3, 0))
    with pytest.raises(InputError, match="index"):
        traverse(z, 6, [0.0])


def test_analogy():
    np.testing.assert_array_equal(analogy([3.0, 1.0], [1.0, 1.0], [0.0, 5.0]), [2.0, 5.0])


def test_pca_is_the_singular_value_decomposition(rng):
    codes = rng.normal(size=(50, 6)) * [5, 3, 1, 1, 0.1, 0.1] + 7
    vectors, shares = pca_directions(codes, 3)
    _, singular, right = np.linalg.svd(codes - codes.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), singular[:3] / np.sqrt(49), rtol=1e-5)
    np.testing.assert_allclose(np.abs((vectors * right[:3]).sum(1)), np.linalg.norm(vectors, axis=1), rtol=1e-5)
    np.testing.assert_allclose(shares, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-9)
    assert (vectors[range(3), np.abs(vectors).argmax(1)] > 0).all()


@pytest.mark.parametrize("method", ["mean", "ridge"])
def test_attribute_directions_find_what_was_planted(method, rng):
    planted = np.array([0.6, 0.8, 0, 0, 0])
    labels = rng.random(4000) < 0.5
    codes = rng.normal(size=(4000, 5)) + np.outer(labels * 4.0, planted)
    found = attribute_direction(codes, labels, method)
    unit = found / np.linalg.norm(found)
    assert unit @ planted > 0.99
    assert np.linalg.norm(found) == pytest.approx((codes @ unit).std(), rel=1e-5)


def test_ridge_separates_attributes_that_occur_together(rng):
    first = rng.random(5000) < 0.5
    second = np.where(rng.random(5000) < 0.9, first, ~first)
    codes = rng.normal(0, 0.1, (5000, 3)) + np.stack([2 * first, 2 * second, 0 * first], 1)
    mean, ridge = (attribute_direction(codes, first, method) for method in ("mean", "ridge"))
    assert mean[1] / mean[0] > 0.7  # the mean difference takes the companion along
    assert abs(ridge[1] / ridge[0]) < 0.2


def test_ridge_solves_its_normal_equations(rng):
    codes, labels = rng.normal(size=(30, 4)), rng.normal(size=30)
    x, y = codes - codes.mean(0), labels - labels.mean()
    # ridge as least squares on rows added for the penalty, by another solver
    w = np.linalg.lstsq(np.vstack([x, np.sqrt(2.5) * np.eye(4)]), np.append(y, np.zeros(4)), rcond=None)[0]
    found = attribute_direction(codes, labels, "ridge", 2.5)
    np.testing.assert_allclose(found / np.linalg.norm(found), w / np.linalg.norm(w), atol=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1], [[0, 1, 0, 1]], [0, 1, np.nan, 0]])
def test_attribute_directions_refuse_labels(labels):
    with pytest.raises(InputError, match="labels"):
        attribute_direction(np.eye(4), labels)


@pytest.mark.parametrize("labels", [["a", "b", "a", "b"], [None, 1, 0, 1], [[0], [1, 2], [0], [1]], None])
def test_labels_that_are_no_numbers_are_refused_by_name(labels):
    with pytest.raises((InputTypeError, InputError), match="labels"):
        attribute_direction(np.eye(4), labels)


@pytest.mark.parametrize("penalty", ["1", None, 0, np.nan, [1.0], 10**400])
def test_penalties_that_are_no_numbers_above_0_are_refused_by_name(penalty):
    with pytest.raises((InputTypeError, InputError), match="penalty"):
        attribute_direction(np.eye(4), [False, True, False, True], penalty=penalty)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_is_the_sorted_list_of_all_distances(metric, rng):
    codes, query = rng.normal(size=(40, 6)), rng.normal(size=(3, 6))
    places, distances = nearest(query, codes, 40, metric)
    for row in range(3):
        if metric == "euclidean":
            plain = [float(np.sqrt(((code - query[row]) ** 2).sum())) for code in codes]
        else:
            sizes = [np.sqrt(code @ code) * np.sqrt(query[row] @ query[row]) for code in codes]
            plain = [1 - code @ query[row] / size for code, size in zip(codes, sizes, strict=True)]
        np.testing.assert_allclose(distances[row], sorted(plain), atol=1e-12)
        np.testing.assert_array_equal(places[row], np.argsort(plain))
    assert nearest(codes[7], codes, 1)[0].tolist() == [[7]]
    with pytest.raises(InputError, match="count"):
        nearest(query, codes, 41)
    with pytest.raises(InputError, match="query"):
        nearest(query[:, :5], codes)


def test_percentile_counts_the_smaller_ones():
    np.testing.assert_allclose(percentile([0, 1, 2.5, 9], [1, 2, 3, 4]), [0, 12.5, 50, 100])
    with pytest.raises(InputError, match="reference"):
        percentile([1.0], [])
