"""The second stage, top to bottom: a projected GAN (Sauer et al. 2021) tunes the decoder of a trained VAE until draws of
its prior decode to faces.

The encoder, and with it every code and the prior, stays as it is. Each step draws new faces, which the critic tells
from real ones, and reconstructs real faces from their codes, which keep their pictures by squared error and by features
(as in VAE/GAN, Larsen et al. 2016). Everything random is a function of (seed, step), so that a run that was stopped
continues exactly: on a CPU with the same number of threads, to the bit.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from vae_runtime.config import PRIOR_FILE
from vae_runtime.figures import image_grid, save_png
from vae_runtime.prior import Prior
from vae_train.adversarial.config import REFINE_FILE, RefineConfig
from vae_train.adversarial.critic import Critic, augment, critic_loss, generator_loss
from vae_train.adversarial.features import FeatureNetwork
from vae_train.config import CONFIG_FILE, TrainConfig
from vae_train.data.faces import Faces, load_faces
from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.device import choose_precision, describe_device
from vae_train.engine.distributed import SINGLE_PROCESS
from vae_train.engine.held_out import evaluate_held_out
from vae_train.engine.logger import Logger, read_metrics
from vae_train.engine.rng import REFINE, make_generator
from vae_train.engine.run_folder import Interrupted, StopRequest, advise_on_memory, catch_signals, disk_may_refuse, lock_run
from vae_train.engine.state import CHECKPOINTS, load_weights
from vae_train.engine.train import describe_data, find_checkpoint
from vae_train.errors import TrainingError
from vae_train.export.fit_latents import fit_prior_to
from vae_train.model.exported import with_fine_decoder
from vae_train.model.figures import FIGURES
from vae_train.model.networks import VAE, reparameterize
from vae_train.model.tensors import CHANNELS_LAST, to_pixels, to_unit

SHEET = 36
"""New faces on the sheet that is drawn with each checkpoint, always of the same codes."""

_POOL = 65_536  # draws of the prior at a time
_POOL_USES = 4  # how often each of them is used, on average
_IMITATION = 400  # steps in which a new decoder learns to draw like the old one
_WARM_UP = 60  # steps in which the critic learns alone
_CALIBRATION = 100  # real pictures that the scale of the features is measured on
_UPDATE_INTERVAL = 2.0  # seconds between two looks at the losses

LOSSES = ("critic_loss", "generator_loss", "squared_error", "feature_distance", "real_score", "drawn_score")
"""What `State.sums` adds up, each as a mean over a batch."""


@dataclass
class State:
    """Where a run stands."""

    model: VAE
    """Its decoder is what is trained."""
    average: VAE
    """The same with the moving average of the decoder's weights: what is evaluated, drawn and exported."""
    critic: Critic
    optimizer: torch.optim.Adam
    critic_optimizer: torch.optim.Adam
    sums: Tensor
    """(len(LOSSES) + 1,) float64: the sums of this epoch, and the number of steps in them."""
    step: int = 0
    seconds: float = 0.0
    """Time that this epoch's steps took so far."""


class Draws:
    """Codes of the prior, drawn many at a time: which ones a step gets depends on its number and the seed alone."""

    def __init__(self, prior: Prior, config: RefineConfig, device: torch.device) -> None:
        self.prior, self.config, self.device = prior, config, device
        self._number, self._pool = -1, torch.empty(0)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """(batch_size, latent_dim)"""
        number = step * self.config.batch_size // (_POOL * _POOL_USES)
        if number != self._number:
            codes = self.prior.sample(_POOL, rng=np.random.default_rng([self.config.seed, number]))
            self._number, self._pool = number, torch.from_numpy(codes).to(self.device)
        return self._pool[_indices(_POOL, self.config.batch_size, generator)]


def refine(
    config: RefineConfig, networks: TrainConfig, start: VAE | None, prior: Prior | None, run: Path, device: torch.device
) -> Faces:
    """Tune the decoder until `config.images` new faces were drawn; return the faces it was trained on.

    networks: the settings of the networks and of the pictures. start: the model to begin with, BatchNorm folded away;
    None to continue the run in `run`. prior: of the codes; fitted to the training pictures if None.
    Writes into `run` what the first stage writes, so that `export` and `evaluate` take it as any run, and refine.json,
    prior.npz and sheets of new faces. Raises UsageError when another process works in `run`, TrainingError when the
    losses diverge, DataError and CheckpointError; Interrupted after a signal, when a checkpoint is saved.
    """
    precision = choose_precision(networks.precision, device)
    networks = dataclasses.replace(networks, precision=precision)
    with lock_run(run, SINGLE_PROCESS):
        saved = find_checkpoint(run, SINGLE_PROCESS) if start is None else None
        faces = load_faces(networks.data, networks.image_size, networks.avatars, networks.seed)
        faces.check_trainable(config.batch_size)
        held_out = faces.held_out()
        data = describe_data(faces, held_out, saved, run)
        real = torch.from_numpy(faces.pixels[~held_out]).to(device)
        test = torch.from_numpy(faces.pixels[held_out]).to(device)

        with catch_signals(SINGLE_PROCESS) as stop, advise_on_memory(networks, device):
            if start is None:
                prior = Prior.from_bytes((run / PRIOR_FILE).read_bytes(), str(run / PRIOR_FILE))
            elif prior is None:
                prior = fit_prior_to(start, faces)
            draws = Draws(prior, config, device)
            network = FeatureNetwork("lite0", torch.bfloat16 if precision == "bfloat16" else torch.float32).to(device)
            state = make_state(config, networks, start, network, device)
            if saved is not None:
                restore(state, saved)
            elif start is not None:
                network_start = start.to(device).eval()
                projection_scale(state, network, real, config)
                imitate(state, network_start, real, draws, config, networks)
                prior.save(run / PRIOR_FILE)
            checkpoint.write(run / CONFIG_FILE, networks.to_json().encode())
            checkpoint.write(run / REFINE_FILE, config.to_json().encode())
            steps = -(-config.images // config.batch_size)
            epoch = max(1, len(real) // config.batch_size)
            logger = Logger(run, [line for line in read_metrics(run) if line["epoch"] <= state.step // epoch], False)
            sheet = torch.from_numpy(prior.sample(SHEET, rng=0)).to(device)
            with _bar(state, config, steps) as bar:
                while state.step < steps:
                    end = min(steps, (state.step // epoch + 1) * epoch)
                    try:
                        train_until(end, state, network, real, draws, config, networks, bar, stop)
                    except Interrupted:
                        save(state, epoch, data, run)
                        raise
                    record = close_epoch(state, epoch, config)
                    figures = evaluate_held_out(state.average, test, networks)
                    record |= {"device": describe_device(device)}
                    logger.add(record | {f"held_out_{name}": value for name, value in figures.items()})
                    save(state, epoch, data, run)
                    with disk_may_refuse(run / FIGURES, set()):
                        draw_sheet(state, sheet, run)
                    bar.write(_describe(logger.records[-1]))
            logger.close()
        return faces


def train_until(
    end: int,
    state: State,
    network: FeatureNetwork,
    real: Tensor,
    draws: Draws,
    config: RefineConfig,
    networks: TrainConfig,
    bar: tqdm[Any],
    stop: StopRequest,
) -> None:
    """Steps up to number `end`. Raises Interrupted after the step in which `stop` received a signal."""
    started = looked = time.monotonic()
    while state.step < end:
        train_step(state, network, real, draws, config, networks)
        bar.update(config.batch_size)
        if time.monotonic() - looked > _UPDATE_INTERVAL:
            looked = time.monotonic()
            bar.set_postfix_str(", ".join(f"{name} {value:.2f}" for name, value in means(state).items() if "_loss" in name))
        if stop.signal_number:
            state.seconds += time.monotonic() - started
            raise Interrupted(stop.signal_number)
    state.seconds += time.monotonic() - started


def train_step(
    state: State, network: FeatureNetwork, real: Tensor, draws: Draws, config: RefineConfig, networks: TrainConfig
) -> None:
    """One step of the critic, then one of the decoder; the first `_WARM_UP` steps are the critic's alone.

    real: all training pictures, uint8 (N, 3, S, S).
    """
    generator = make_generator(config.seed, REFINE, state.step, real.device)
    size, mixed = config.batch_size, networks.precision == "bfloat16"
    faces = to_unit(real[_indices(len(real), size, generator)])
    kept = to_unit(real[_indices(len(real), size // 2, generator)])
    kept = torch.where(_uniform(len(kept), generator)[:, None, None, None] < 0.5, kept.flip(3), kept)
    rate = config.rate(state.step * size)
    _set_rates(state, config, rate)

    with torch.autocast(real.device.type, torch.bfloat16, enabled=mixed):
        with torch.no_grad():
            mu, logvar = state.model.encoder(kept)
            eps = torch.randn(mu.shape, generator=generator, device=real.device)
        codes = torch.cat([draws(state.step, generator), reparameterize(mu, logvar, eps)])
        drawn, reconstructed = state.model.decoder(codes).split([size, len(kept)])
    shown, faces = augment(drawn, generator), augment(faces, generator)
    drawn_features = state.critic.standardize(_features(network, shown, config))
    with torch.no_grad():
        real_features = state.critic.standardize(_features(network, faces, config))

    with torch.autocast(real.device.type, torch.bfloat16, enabled=mixed):
        state.critic.requires_grad_(True)
        real_scores = state.critic(real_features, faces)
        drawn_scores = state.critic([feature.detach() for feature in drawn_features], shown.detach())
        loss = critic_loss(real_scores, drawn_scores)
    state.critic_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.critic_optimizer.step()
    state.critic.requires_grad_(False)
    losses = [loss, loss.new_zeros(()), *loss.new_zeros(2), _mean(real_scores), _mean(drawn_scores)]

    if state.step >= _WARM_UP:
        with torch.autocast(real.device.type, torch.bfloat16, enabled=mixed):
            adversarial = generator_loss(state.critic(drawn_features, shown))
        error = (reconstructed - kept).square().mean()
        distance = error.new_zeros(())
        if config.features and state.step % 2 == 0:  # every other step, with twice the weight
            with torch.no_grad():
                wanted = state.critic.standardize(_features(network, kept, config))
            found = state.critic.standardize(_features(network, reconstructed, config))
            distance = 2 * torch.stack([functional.mse_loss(f, w) for f, w in zip(found, wanted, strict=True)]).sum()
        total = adversarial + config.fidelity * error + config.features * distance
        state.optimizer.zero_grad(set_to_none=True)
        total.backward()
        state.optimizer.step()
        _update_average(state, config)
        losses[1:4] = [adversarial, error, distance]
    state.sums += torch.stack([*[value.detach().double() for value in losses], state.sums.new_ones(())])
    state.step += 1


def make_state(
    config: RefineConfig, networks: TrainConfig, start: VAE | None, network: FeatureNetwork, device: torch.device
) -> State:
    """The networks, their averages and their optimizers; Adam without momentum, as the paper has it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = with_fine_decoder(copy.deepcopy(start)) if start is not None else VAE.from_config(networks)
        critic = Critic(network.channels)
    model.to(device=device, memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    critic.to(device)
    model.eval().encoder.requires_grad_(False)
    optimizer = torch.optim.Adam(model.decoder.parameters(), config.learning_rate, betas=(0.0, 0.99))
    critic_optimizer = torch.optim.Adam(critic.parameters(), config.critic_rate, betas=(0.0, 0.99))
    sums = torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=device)
    return State(model, copy.deepcopy(model).requires_grad_(False), critic, optimizer, critic_optimizer, sums)


@torch.no_grad()
def projection_scale(state: State, network: FeatureNetwork, real: Tensor, config: RefineConfig) -> None:
    """Measure the scale of each feature on some real pictures."""
    generator = make_generator(config.seed, REFINE, 2**32 - 1, real.device)
    chosen = to_unit(real[:: max(1, len(real) // _CALIBRATION)][:_CALIBRATION])
    state.critic.calibrate(_features(network, augment(chosen, generator), config))


def imitate(
    state: State, start: VAE, real: Tensor, draws: Draws, config: RefineConfig, networks: TrainConfig
) -> None:
    """Teach a decoder of another kind than `start` has to draw like it; nothing to do if they are of one kind."""
    if start.decoder_kind == state.model.decoder_kind:
        return
    optimizer = torch.optim.Adam(state.model.decoder.parameters(), 1e-3, betas=(0.9, 0.99))
    for step in tqdm(range(_IMITATION), desc="imitating the decoder as it was", unit="step", disable=None):
        generator = make_generator(config.seed, REFINE, 2**32 + step, real.device)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1.01 - step / _IMITATION)
        with torch.no_grad(), torch.autocast(real.device.type, torch.bfloat16, enabled=networks.precision == "bfloat16"):
            mu, logvar = start.encoder(to_unit(real[_indices(len(real), config.batch_size // 2, generator)]))
            eps = torch.randn(mu.shape, generator=generator, device=real.device)
            codes = torch.cat([draws(0, generator), reparameterize(mu, logvar, eps)])
            wanted = start.decoder(codes)
        with torch.autocast(real.device.type, torch.bfloat16, enabled=networks.precision == "bfloat16"):
            error = functional.mse_loss(state.model.decoder(codes), wanted)
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
    state.average.load_state_dict(state.model.state_dict())


def save(state: State, epoch: int, data: dict[str, Any], run: Path) -> None:
    """Write a checkpoint. epoch: steps of an epoch. TrainingError if a weight is not finite; CheckpointError."""
    tensors = {"sums": state.sums}
    for name, part in _parts(state).items():
        tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    for name, optimizer in _optimizers(state).items():
        tensors |= {
            f"{name}.{index}.{key}": value
            for index, moments in optimizer.state_dict()["state"].items()
            for key, value in moments.items()
        }
    if not all(value.isfinite().all() for value in tensors.values()):
        raise TrainingError(f"step {state.step}: weights that are not finite; the last good checkpoint stays in {run}")
    position = {"epoch": state.step // epoch, "seconds": state.seconds, "data": data}
    checkpoint.save(run / CHECKPOINTS, Checkpoint(state.step, position, tensors))


def restore(state: State, saved: Checkpoint) -> None:
    """Put a checkpoint into `state`; CheckpointError if it belongs to other networks."""
    load_weights(state.model, saved, "model")
    load_weights(state.average, saved, "average")
    critic = {name.removeprefix("critic."): v for name, v in saved.tensors.items() if name.startswith("critic.")}
    state.critic.load_state_dict(critic)
    for name, optimizer in _optimizers(state).items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.tensors.items():
            prefix, _, rest = key.partition(".")
            if prefix == name:
                index, _, moment = rest.partition(".")
                moments.setdefault(int(index), {})[moment] = (
                    value.contiguous(memory_format=CHANNELS_LAST) if value.ndim == 4 else value
                )
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    state.sums.copy_(saved.tensors["sums"])
    state.step, state.seconds = saved.step, float(saved.state["seconds"])


def means(state: State) -> dict[str, float]:
    """The means of this epoch so far, by name."""
    *sums, steps = state.sums.tolist()
    return {name: value / max(steps, 1) for name, value in zip(LOSSES, sums, strict=True)}


def close_epoch(state: State, epoch: int, config: RefineConfig) -> dict[str, Any]:
    """End the epoch in `state` and return its figures; TrainingError if a loss is not finite."""
    figures, steps = means(state), int(state.sums[-1])
    if not all(map(math.isfinite, figures.values())):
        raise TrainingError(f"step {state.step}: a loss is not finite; continue from the last checkpoint with --resume")
    speed = steps * config.batch_size / max(state.seconds, 1e-9)
    state.sums.zero_()
    state.seconds = 0.0
    return {
        "epoch": -(-state.step // epoch),
        "step": state.step,
        "images": state.step * config.batch_size,
        **{f"train_{name}": round(value, 6) for name, value in figures.items()},
        "images_per_second": round(speed, 1),
    }


@torch.no_grad()
def draw_sheet(state: State, codes: Tensor, run: Path) -> None:
    """New faces of the same codes at each checkpoint, and the first of each sheet below each other as progress.png."""
    sheets = run / FIGURES / "new_faces"
    sheets.mkdir(parents=True, exist_ok=True)
    faces = to_pixels(state.average.decoder(codes))
    save_png(image_grid(faces, columns=6), sheets / f"{state.step:09d}.png")
    rows = run / FIGURES / "progress.npy"
    first = faces[None, :8]
    progress = np.concatenate([np.load(rows), first]) if rows.exists() else first
    np.save(rows, progress)
    save_png(image_grid(progress.reshape(-1, *faces.shape[1:]), columns=8), run / FIGURES / "progress.png")


def _features(network: FeatureNetwork, image: Tensor, config: RefineConfig) -> list[Tensor]:
    if image.shape[-1] != config.side:
        image = functional.interpolate(image, size=(config.side, config.side), mode="bilinear", align_corners=False)
    return network(image)


def _set_rates(state: State, config: RefineConfig, rate: float) -> None:
    state.optimizer.param_groups[0]["lr"] = config.learning_rate * rate
    state.critic_optimizer.param_groups[0]["lr"] = config.critic_rate * rate


@torch.no_grad()
def _update_average(state: State, config: RefineConfig) -> None:
    share = 1 - min(0.5 ** (config.batch_size / config.average), (state.step + 1) / (state.step + 10))
    torch._foreach_lerp_(list(state.average.decoder.parameters()), list(state.model.decoder.parameters()), share)


def _parts(state: State) -> dict[str, nn.Module]:
    return {"model": state.model, "average": state.average, "critic": state.critic}


def _optimizers(state: State) -> dict[str, torch.optim.Adam]:
    return {"optimizer": state.optimizer, "critic_optimizer": state.critic_optimizer}


def _indices(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, count, (size,), generator=generator, device=generator.device)


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator, device=generator.device)


def _mean(scores: list[Tensor]) -> Tensor:
    return torch.stack([score.float().mean() for score in scores]).mean()


def _bar(state: State, config: RefineConfig, steps: int) -> tqdm[Any]:
    interactive = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        total=steps * config.batch_size,
        initial=state.step * config.batch_size,
        unit="img",
        unit_scale=True,
        mininterval=0.2 if interactive else 10.0,
        disable=sys.stderr is None,
    )


def _describe(record: dict[str, Any]) -> str:
    return (
        f"{record['images']:9,d} new faces: critic {record['train_critic_loss']:.2f}, held out "
        f"{record['held_out_psnr']:.2f} dB, {record['held_out_bits_per_dim']:.3f} bits/dim; "
        f"{record['images_per_second']:.0f} images/s"
    )
