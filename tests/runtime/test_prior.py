from __future__ import annotations

import io
import math
import zipfile

import numpy as np
import pytest

from vae_runtime.directions import Directions
from vae_runtime.errors import InputError, InputTypeError, ModelFileError
from vae_runtime.prior import Prior, sample_prior
from vae_runtime.prior.flow import ARRAYS, Flow


def mixture(rng: np.random.Generator, count: int = 3, dim: int = 4) -> Prior:
    weights = np.arange(1, count + 1) / sum(range(1, count + 1))
    scales = np.tril(rng.normal(0, 0.3, (count, dim, dim)))
    scales[:, range(dim), range(dim)] = rng.uniform(0.5, 1.5, (count, dim))
    return Prior(weights, rng.normal(0, 3, (count, dim)), scales)


def tied(rng: np.random.Generator, count: int = 3, dim: int = 4) -> Prior:
    weights = np.arange(1, count + 1) / sum(range(1, count + 1))
    spreads = rng.uniform(0.3, 2, (count, dim))
    return Prior(weights, rng.normal(0, 3, (count, dim)), rng.normal(0, 1, (1, dim, dim)), spreads)


def bent(rng: np.random.Generator, count: int = 3, dim: int = 4, layers: int = 3, hidden: int = 5) -> Prior:
    rest = dim - dim // 2
    flow = Flow(
        np.stack([rng.permutation(dim) for _ in range(layers)]),
        rng.normal(size=(layers, hidden, dim // 2)),
        rng.normal(size=(layers, hidden)),
        rng.normal(0, 0.4, (layers, 2 * rest, hidden)),
        rng.normal(0, 0.3, (layers, 2 * rest)),
        np.eye(dim) + rng.normal(0, 0.2, (dim, dim)),
        rng.normal(size=dim),
    )
    weights = np.arange(1, count + 1) / sum(range(1, count + 1))
    return Prior(weights, np.zeros((count, dim)), None, rng.uniform(0.3, 1.5, (count, dim)), flow)


def factors(prior: Prior) -> np.ndarray:
    """A_k of each component, so that its covariance is A_k A_k^T."""
    return prior.scales if prior.spreads is None else prior.scales * prior.spreads[:, None]


@pytest.fixture(params=[mixture, tied])
def any_mixture(request, rng):
    return request.param(rng)


@pytest.fixture(params=[mixture, tied, bent])
def any_prior(request, rng):
    return request.param(rng)


def test_the_standard_prior_is_the_unit_gaussian(rng):
    prior, z = Prior.standard(5), rng.normal(size=(7, 5))
    expected = -0.5 * (z**2).sum(1) - 2.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-6)
    draws = np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32)
    np.testing.assert_array_equal(prior.sample(4, rng=3), draws)
    np.testing.assert_array_equal(sample_prior(4, 5, rng=3), draws)


def test_log_prob_is_the_mixture_by_covariances(any_mixture, rng):
    """Independent oracle: the density written with inverse and determinant of each covariance, summed plainly."""
    prior, z = any_mixture, rng.normal(0, 3, (20, 4))
    total = np.zeros(20)
    for weight, mean, scale in zip(prior.weights, prior.means, factors(prior), strict=True):
        covariance = scale.astype(float) @ scale.T.astype(float)
        squares = np.einsum("ni,ij,nj->n", z - mean, np.linalg.inv(covariance), z - mean)
        total += weight * np.exp(-0.5 * squares) / np.sqrt((2 * np.pi) ** 4 * np.linalg.det(covariance))
    np.testing.assert_allclose(prior.log_prob(z), np.log(total), rtol=1e-5)


def test_log_prob_integrates_to_one():
    prior = Prior([0.3, 0.7], [[-2.0], [1.0]], [[[0.5]], [[1.5]]])
    x, step = np.linspace(-15, 15, 20_001, retstep=True)
    assert np.exp(prior.log_prob(x[:, None])).sum() * step == pytest.approx(1, abs=1e-6)


def test_log_prob_far_away_is_finite(any_prior):
    for far in ([[1e4, -1e4, 1e4, 0]], [[-1e6, 1e6, 0, 0]]):
        log_prob, score = any_prior.log_prob_and_score(far)
        assert np.isfinite(log_prob).all()
        assert np.isfinite(score).all()


def plainly(flow: Flow, x: np.ndarray) -> np.ndarray:
    """Independent oracle: the flow by its definition, one number after the other."""

    def affine(matrix: np.ndarray, numbers: list[float], plus: np.ndarray) -> list[float]:
        rows = zip(matrix.tolist(), plus.tolist(), strict=True)
        return [sum(w * each for w, each in zip(row, numbers, strict=True)) + bias for row, bias in rows]

    y, half = x.tolist(), flow.latent_dim // 2
    for layer, order in enumerate(flow.orders):
        before = affine(flow.inner[layer], [y[i] for i in order[:half]], flow.inner_bias[layer])
        said = affine(flow.outer[layer], [a / (1 + math.exp(-a)) for a in before], flow.outer_bias[layer])
        moves, scales = said[: len(said) // 2], said[len(said) // 2 :]
        for i, move, scale in zip(order[half:], moves, scales, strict=True):
            y[i] = math.exp(math.tanh(scale)) * y[i] + move
    return np.array(affine(flow.basis, y, flow.shift))


def test_arrays_that_a_prior_is_made_of_stay_their_owners():
    weights, means, scales = np.ones(1, np.float32), np.zeros((2, 4), np.float32)[:1], np.eye(4, dtype=np.float32)[None]
    prior = Prior(weights, means, scales)
    means.base[:] = 3
    scales[:] = 7
    assert (prior.means == 0).all()
    assert (prior.scales == np.eye(4)).all()


@pytest.mark.parametrize("dim", [2, 4, 7])
def test_the_flow_is_what_it_says(rng, dim):
    flow, x = bent(rng, dim=dim).flow, rng.normal(size=(6, dim))
    z = flow.forward(x)
    np.testing.assert_allclose(z, [plainly(flow, row) for row in x], rtol=1e-9, atol=1e-9)
    back, log_det = flow.inverse(z)
    np.testing.assert_allclose(back, x, atol=1e-9)
    step = 1e-6 * np.eye(dim)
    slopes = np.stack([(flow.forward(x + each) - flow.forward(x - each)) / 2e-6 for each in step], axis=2)
    np.testing.assert_allclose(log_det, -np.linalg.slogdet(slopes)[1], atol=1e-6)


def test_the_density_of_a_flow_integrates_to_one(rng):
    prior = bent(rng, dim=2)
    axis, step = np.linspace(-50, 50, 801, retstep=True)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    assert np.exp(prior.log_prob(grid)).sum() * step**2 == pytest.approx(1, abs=1e-3)


def test_draws_of_a_flow_are_as_likely_as_it_says(rng):
    """Shares of draws in boxes are the integrals of the density over them."""
    prior = bent(rng, dim=2)
    z, step = prior.sample(100_000, rng=0).astype(float), 0.02
    for low, high in (((-1, -1), (1, 0.5)), ((0, 0), (2, 3))):
        middles = [np.arange(a, b, step) + step / 2 for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*middles), axis=-1).reshape(-1, 2)
        expected = np.exp(prior.log_prob(grid)).sum() * step**2
        share = ((z >= low) & (z < high)).all(axis=1).mean()
        assert share == pytest.approx(expected, abs=0.006)


def test_cold_draws_of_a_flow_are_its_center(rng):
    prior = bent(rng)
    np.testing.assert_allclose(prior.sample(3, rng=0, temperature=0), np.tile(prior.center, (3, 1)), atol=1e-5)
    assert prior.kind == "a flow over 3 Gaussians"
    assert Prior.standard(4).kind == "N(0, I)"
    assert mixture(rng, 1).kind == "a Gaussian"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("orders", lambda v: v * 0, "orders"),
        ("orders", lambda v: v + 1, "orders"),
        ("orders", lambda v: v[0], "orders"),
        ("orders", lambda v: v[:, :1], "latent_dim of 2"),
        ("orders", lambda v: np.tile(v, (30, 1)), "L from 1 to 64"),
        ("inner", lambda v: v[:, :, :1], "inner"),
        ("inner_bias", lambda v: v[:, :0], "hidden"),
        ("outer", lambda v: v[:1], "outer"),
        ("outer_bias", lambda v: v * np.nan, "finite"),
        ("basis", lambda v: v * 0, "basis"),
        ("shift", lambda v: v[:2], "shift"),
    ],
)
def test_what_is_no_flow_is_refused(rng, name, change, said):
    flow = bent(rng).flow
    arrays = {key: getattr(flow, key) for key in ARRAYS}
    with pytest.raises(InputError, match=said):
        Flow(**arrays | {name: change(arrays[name])})


def test_draws_beyond_float32_are_refused(rng):
    flow = bent(rng, layers=30).flow
    wild = Flow(**{key: getattr(flow, key) for key in ARRAYS} | {"outer": flow.outer * np.float32(1e30)})
    for prior in (Prior([1.0], np.zeros((1, 4)), flow=wild), Prior([1.0], np.zeros((1, 2)), np.eye(2)[None] * 3e38)):
        with pytest.raises(InputError, match="not finite"):
            prior.sample(64, rng=0)


def test_a_flow_of_another_length_is_refused(rng):
    with pytest.raises(InputError, match="latent_dim 4"):
        Prior([1.0], np.zeros((1, 3)), flow=bent(rng).flow)


@pytest.mark.parametrize("name", ["orders", "basis", "outer_bias"])
def test_half_a_flow_is_refused(tmp_path, rng, name):
    path = bent(rng).save(tmp_path / "prior.npz")
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    del members[f"{name}.npy"]
    path.write_bytes(zipped(members))
    with pytest.raises(ModelFileError, match=r"prior\.npz"):
        Prior.load(path)


def test_the_score_is_the_slope_of_log_prob(any_prior, rng):
    z, step = rng.normal(0, 3, (5, 4)), 1e-4
    log_prob, score = any_prior.log_prob_and_score(z)
    np.testing.assert_allclose(log_prob, any_prior.log_prob(z))
    for index in range(4):
        moved = step * np.eye(4)[index]
        slope = (any_prior.log_prob(z + moved) - any_prior.log_prob(z - moved)) / (2 * step)
        np.testing.assert_allclose(score[:, index], slope, rtol=1e-3, atol=1e-3)


def test_samples_have_the_moments_of_the_mixture(any_mixture):
    prior, count = any_mixture, 200_000
    z = prior.sample(count, rng=0).astype(float)
    mean = prior.weights @ prior.means
    covariance = sum(
        w * (s.astype(float) @ s.T + np.outer(m - mean, m - mean))
        for w, m, s in zip(prior.weights, prior.means, factors(prior), strict=True)
    )
    np.testing.assert_allclose(z.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(z.T), covariance, rtol=0.03, atol=0.2)


def test_temperature_scales_the_spread_and_keeps_the_means(rng):
    prior = mixture(rng)
    cold = prior.sample(500, rng=1, temperature=0)
    assert len(np.unique(cold, axis=0)) == 3
    shares = [(cold == mean).all(1).mean() for mean in prior.means]
    np.testing.assert_allclose(shares, prior.weights, atol=0.08)
    warm, hot = (prior.sample(500, rng=1, temperature=t) for t in (1.0, 2.0))
    np.testing.assert_allclose(hot - cold, 2 * (warm - cold), atol=1e-5)


def test_truncation_bounds_the_white_noise(rng):
    prior = Prior([1.0], [[5.0, 5.0]], [[[2.0, 0.0], [1.0, 0.5]]])
    z = prior.sample(5000, rng=0, truncation=0.7)
    white = np.linalg.solve(prior.scales[0].astype(float), (z - 5.0).T)
    assert np.abs(white).max() <= 0.7 + 1e-5
    assert np.abs(white).max() > 0.69
    # the standard deviation of N(0, 1) cut at a: 1 - 2 a phi(a) / (2 Phi(a) - 1), here by a sum over a fine grid
    x = np.linspace(-0.7, 0.7, 10_001)
    density = np.exp(-(x**2) / 2)
    assert white.std() == pytest.approx(np.sqrt((x**2 * density).sum() / density.sum()), abs=0.01)


def test_the_same_seed_gives_the_same_bits(rng):
    prior = mixture(rng)
    np.testing.assert_array_equal(prior.sample(9, rng=5, truncation=1.0), prior.sample(9, rng=5, truncation=1.0))
    assert (prior.sample(9, rng=5) != prior.sample(9, rng=6)).any()
    assert prior.sample(0).shape == (0, 4)


@pytest.mark.parametrize("options", [{"temperature": -1}, {"temperature": np.nan}, {"truncation": 0.01}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Prior.standard(2).sample(1, **options)


def test_other_types_are_refused():
    with pytest.raises(InputTypeError, match="truncation"):
        Prior.standard(2).sample(1, truncation="1")


@pytest.mark.parametrize(
    ("weights", "means", "scales", "said"),
    [
        ([0.5, 0.4], np.zeros((2, 3)), None, "sum"),
        ([1.5, -0.5], np.zeros((2, 3)), None, "sum"),
        ([1.0], np.zeros((2, 3)), None, "weights"),
        ([1.0], np.zeros(3), None, "means"),
        ([], np.zeros((0, 3)), None, "weights"),
        ([1.0], np.full((1, 3), np.nan), None, "finite"),
        ([1.0], np.zeros((1, 2)), np.ones((1, 2, 2)), "scales"),
        ([1.0], np.zeros((1, 2)), np.zeros((1, 2, 2)), "scales"),
        ([0.2, 0.3, 0.5], np.zeros((3, 2)), np.stack([np.eye(2)] * 2), "scales"),
        ([1.0], np.zeros((1, 2)), np.eye(3)[None], "scales"),
    ],
)
def test_what_is_no_prior_is_refused(weights, means, scales, said):
    with pytest.raises(InputError, match=said):
        Prior(weights, means, scales)


@pytest.mark.parametrize("spreads", [np.ones((1, 2)), np.zeros((2, 2)), -np.ones((2, 2)), np.full((2, 2), np.nan)])
def test_spreads_that_are_none_are_refused(spreads):
    with pytest.raises(InputError, match="spreads"):
        Prior([0.5, 0.5], np.zeros((2, 2)), np.eye(2)[None], spreads)


def test_save_and_load(tmp_path, rng):
    for prior in (mixture(rng), tied(rng), bent(rng), Prior.standard(6)):
        path, again = prior.save(tmp_path / "a.npz"), prior.save(tmp_path / "b.npz")
        assert path.read_bytes() == again.read_bytes()
        loaded = Prior.load(path)
        np.testing.assert_array_equal(loaded.sample(5, rng=0), prior.sample(5, rng=0))
        np.testing.assert_array_equal(np.load(path)["means"], prior.means)  # a plain .npz


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


ONE, MEAN = npy(np.ones(1, np.float32)), npy(np.zeros((1, 2), np.float32))
CLAIM = npy(np.zeros((1, 2), np.float32)).replace(b"(1, 2), }        ", b"(1, 2000000000)}")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        zipped({}),
        zipped({"weights.npy": ONE}),
        zipped({"weights.npy": ONE, "means.npy": MEAN, "extra.npy": ONE}),
        zipped({"weights.npy": ONE, "means.npy": MEAN}, zipfile.ZIP_DEFLATED),
        zipped({"weights.npy": ONE, "means.npy": MEAN[:-1]}),
        zipped({"weights.npy": ONE, "means.npy": CLAIM}),
        zipped({"weights.npy": ONE, "means.npy": npy(np.array([[object()]]), allow_pickle=True)}),
        zipped({"weights.npy": ONE, "means.npy": MEAN})[:-30],
    ],
)
def test_files_that_are_no_prior_are_refused(tmp_path, data):
    path = tmp_path / "prior.npz"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"prior\.npz"):
        Prior.load(path)


def test_directions_keep_their_names(tmp_path, rng):
    directions = Directions(("smile", "ünï"), rng.normal(size=(2, 4)))
    path = directions.save(tmp_path / "d.npz")
    assert path.read_bytes() == directions.save(tmp_path / "e.npz").read_bytes()
    loaded = Directions.load(path)
    assert loaded.names == ("smile", "ünï")
    np.testing.assert_array_equal(loaded["ünï"], directions.vectors[1])
    with pytest.raises(InputError, match="did you mean 'smile'"):
        loaded["smil"]
    path.write_bytes(path.read_bytes().replace("ü".encode("utf-32-le"), b"\xff\xff\xff\x7f"))
    with pytest.raises(ModelFileError, match=r"d\.npz"):
        Directions.load(path)
    with pytest.raises(ModelFileError):
        Directions.load(Prior.standard(4).save(tmp_path / "p.npz"))


@pytest.mark.parametrize(
    ("names", "vectors"),
    [
        (("a",), np.zeros((1, 3))),
        (("a", "a"), np.ones((2, 3))),
        (("a",), np.ones((2, 3))),
        (("",), np.ones((1, 3))),
        ((), np.ones((0, 3))),
        (("a",), np.full((1, 3), np.inf)),
    ],
)
def test_what_is_no_direction_is_refused(names, vectors):
    with pytest.raises(InputError, match="directions"):
        Directions(names, vectors)
