"""One step of the optimiser, against a plain one; and steps that go wrong."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from vae_train.config import TrainConfig
from vae_train.engine import step as loop
from vae_train.engine.checkpoint import load_latest
from vae_train.engine.cuda_graph import capture
from vae_train.engine.distributed import SINGLE_PROCESS
from vae_train.engine.loader import augment
from vae_train.engine.logger import read_metrics
from vae_train.engine.schedule import average_weight
from vae_train.engine.state import CHECKPOINTS, State, make_state
from vae_train.engine.step import Batch, draw_kernels, schedule_values, train_step
from vae_train.engine.train import MAX_SKIPPED, running_loss, train
from vae_train.errors import TrainingError
from vae_train.model import losses

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=8, latent_dim=16, precision="float32")
SETTINGS = {
    "classic": {},
    "gaussian": {"likelihood": "gaussian"},
    "clipped": {"clip": 1.0},
    "free bits": {"free_bits": 0.2, "kl_warmup": 0},
    "cosine, no average": {"schedule": "cosine", "warmup": 2, "epochs": 2, "ema": 0.0},
    "sharpness": {"sharpness": 0.5, "epochs": 1},
    "base": {"preset": "base", "likelihood": "gaussian", "clip": 100.0, "beta": 0.5, "flip": True, "shift": 1},
}


def draw(step: int, config: TrainConfig = CONFIG) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    eps = torch.randn(8, 16, generator=generator)
    views = torch.randint(0, 2, (8, 3), generator=generator)
    return pixels, views, eps, draw_kernels(config, step, CPU)


def take(state: State, config: TrainConfig, steps: int, first: int = 0) -> None:
    table = schedule_values(config, 0, 6)
    state.model.train()
    for step in range(first, first + steps):
        train_step(state, state.model, config, SINGLE_PROCESS, Batch(*draw(step, config), table[step]))


def snapshot(state: State) -> dict[str, torch.Tensor]:
    parts = {f"average.{name}": value for name, value in state.average.state_dict().items()}
    parts |= {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        parts |= {f"{index}.{name}": value for name, value in moments.items()}
    return {name: value.clone() for name, value in parts.items()}


def flat(model: torch.nn.Module) -> torch.Tensor:
    """All weights and statistics as one vector."""
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_are_those_of_a_plain_loop(settings):
    config = dataclasses.replace(CONFIG, **SETTINGS[settings])
    state = make_state(config, CPU)
    model = copy.deepcopy(state.model).train()
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=False, foreach=False)
    table, squared_errors = schedule_values(config, 0, 6), 0.0
    for step in range(4):
        pixels, views, eps, kernels = draw(step, config)
        image = (augment(pixels, views) if config.flip else pixels).float() / 255
        reconstruction, mu, logvar = model(image, eps)
        mse = (reconstruction - image).square().mean()
        error = image[0].numel() * mse
        kl = 0.5 * (logvar.exp() + mu**2 - 1 - logvar)
        likelihood = error if config.likelihood == "mse" else image[0].numel() / 2 * mse.log()
        penalty = kl.mean(0).clamp_min(config.free_bits).sum() if config.free_bits else kl.sum(1).mean()
        loss = likelihood + config.beta * table[step, 1] * penalty
        if config.sharpness:
            loss = loss + config.sharpness * table[step, 3] * mse.new_tensor(3072) * losses.patch_distance(
                reconstruction, image, kernels
            )
        optimizer.zero_grad()
        loss.backward()
        if config.clip:
            clip_grad_norm_(model.parameters(), config.clip)
        optimizer.param_groups[0]["lr"] = table[step, 0].item()
        optimizer.step()
        share = average_weight(step, config.ema)
        for one, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            one.copy_(one + share * (other - one) if one.is_floating_point() else other)
        squared_errors += 8 * error.item()
    start = flat(state.model)
    take(state, config, 4)
    # Of all the way that the weights went: Adam makes steps of its size out of the rounding of gradients near 0.
    for ours, theirs in ((state.model, model), (state.average, average)):
        assert (flat(ours) - flat(theirs)).norm() < 0.02 * (flat(theirs) - start).norm()
    assert state.sums[0].item() == pytest.approx(squared_errors, rel=1e-4)
    assert state.sums[2:].tolist() == [32, 0, 0]


def test_a_step_that_is_no_number_changes_nothing():
    state = make_state(CONFIG, CPU)
    take(state, CONFIG, 2)
    before, sums = snapshot(state), state.sums.clone()
    pixels, views, eps, kernels = draw(2)
    spoiled = pixels, views, eps * float("nan"), kernels
    train_step(state, state.model, CONFIG, SINGLE_PROCESS, Batch(*spoiled, schedule_values(CONFIG, 0, 6)[2]))
    after = snapshot(state)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert state.sums.tolist() == [*sums[:3].tolist(), 1, 2]
    take(state, CONFIG, 1, first=3)
    assert state.sums[2:].tolist() == [24, 1, 2]
    assert all(value.isfinite().all() for value in snapshot(state).values())


def test_a_gradient_that_is_no_number_is_skipped_too():
    state = make_state(CONFIG, CPU)
    state.model.encoder.mu.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = snapshot(state)["model.decoder.layers.0.weight"]
    take(state, CONFIG, 1)
    assert state.sums[3] == 1
    assert torch.equal(before, snapshot(state)["model.decoder.layers.0.weight"])


def test_too_many_skipped_steps_stop_the_run():
    state = make_state(CONFIG, CPU)
    state.sums.copy_(torch.tensor([800.0, 8.0, 8.0, MAX_SKIPPED, 11.0]))
    assert running_loss(state, CONFIG, 3072) == pytest.approx(101)
    state.sums.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]))  # a look right after a first step that was skipped
    assert running_loss(state, CONFIG, 3072) == 0
    state.sums.copy_(torch.tensor([800.0, 8.0, 8.0, MAX_SKIPPED + 1, 11.0]))
    with pytest.raises(TrainingError, match=r"epoch 1: .* 11 steps, .* batch 12;"):
        running_loss(state, CONFIG, 3072)


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the noise of these steps of a run no number."""
    real, seen = loop.train_step, iter(range(10**6))

    def step(*arguments: object) -> None:
        *first, batch = arguments
        real(*first, batch._replace(eps=batch.eps * float("nan")) if next(seen) in steps else batch)

    monkeypatch.setattr(loop, "train_step", step)


def test_a_few_bad_steps_are_skipped_and_logged(faces_zip, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, data=str(faces_zip), batch_size=50, epochs=2)
    poison(monkeypatch, {1, 6, 7})
    train(config, tmp_path / "run", CPU)
    assert [line["skipped_steps"] for line in read_metrics(tmp_path / "run")] == [1, 2]
    saved, damaged = load_latest(tmp_path / "run" / CHECKPOINTS)
    assert saved is not None
    assert not damaged
    assert all(value.isfinite().all() for value in saved.tensors.values())


def test_the_run_stops_and_names_epoch_and_batch(faces_zip, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, data=str(faces_zip), batch_size=50, epochs=3)
    poison(monkeypatch, set(range(4, 999)))
    with pytest.raises(TrainingError, match=r"epoch 2: .* 4 steps, .* batch 4; .*--learning-rate"):
        train(config, tmp_path / "run", CPU)
    assert len(list((tmp_path / "run" / CHECKPOINTS).glob("*.json"))) == 1


def test_the_memory_is_not_enough(faces_zip, tmp_path, monkeypatch):
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")

    monkeypatch.setattr(loop, "train_step", exhausted)
    config = dataclasses.replace(CONFIG, data=str(faces_zip), batch_size=50)
    expected = r"out of memory: .* 50 pictures of 32x32 asked for 2.50 GiB where .* try --batch-size 25"
    with pytest.raises(TrainingError, match=expected):
        train(config, tmp_path / "run", CPU)


def test_torchs_own_words_for_a_full_memory_are_known(faces_zip, tmp_path, monkeypatch):
    """The allocator of the CPU has no error class of its own."""
    monkeypatch.setattr(loop, "train_step", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    config = dataclasses.replace(CONFIG, data=str(faces_zip), batch_size=50)
    with pytest.raises(TrainingError, match=r"asked for 1152921504606846976 bytes"):
        train(config, tmp_path / "run", CPU)


def test_without_a_gpu_there_is_no_graph_and_a_warning_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    state = make_state(CONFIG, CPU)
    before = snapshot(state)
    step = partial(train_step, state, state.model, CONFIG, SINGLE_PROCESS)
    assert capture(step, Batch(*draw(0), torch.zeros(4))) is step
    assert "no CUDA graph of the step" in capsys.readouterr().err
    assert before.keys() <= snapshot(state).keys()


@pytest.mark.parametrize("preset", ["classic", "base"])
def test_bfloat16_costs_no_loss(preset):
    """Loss and direction of the gradient are those of float32; the README has the figures of whole runs."""
    config = dataclasses.replace(CONFIG, preset=preset, kl_warmup=0)
    found = {}
    for precision in ("float32", "bfloat16"):
        state = make_state(config, CPU)
        take(state, dataclasses.replace(config, precision=precision), 1)
        gradients = [parameter.grad.flatten() for parameter in state.model.parameters()]
        found[precision] = (state.sums[:2].sum().item(), torch.cat(gradients))
    (exact, gradient), (rough, other) = found["float32"], found["bfloat16"]
    assert rough == pytest.approx(exact, rel=0.005)
    assert torch.nn.functional.cosine_similarity(gradient, other, dim=0) > 0.97


def test_the_objective_is_the_negative_elbo():
    error, kl = torch.tensor([10.0, 20.0]), torch.tensor([[1.0, 2.0], [0.5, 0.5]])
    assert loop.objective(error, kl, torch.tensor(2.0), CONFIG, 48).item() == pytest.approx(15 + 2 * 2)
    gaussian = dataclasses.replace(CONFIG, likelihood="gaussian")
    expected = losses.reconstruction_nats("gaussian", 15.0, 48) + 2
    assert loop.objective(error, kl, torch.tensor(1.0), gaussian, 48).item() == pytest.approx(expected)
