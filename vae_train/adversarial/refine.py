"""The second stage: a projected GAN (Sauer et al. 2021) tunes the decoder of a trained VAE until draws of its
prior decode to faces.

Each step draws new faces, which the critic tells from real ones, and reconstructs real faces from their codes, which
keep their pictures by squared error and by features (as in VAE/GAN, Larsen et al. 2016). At the start the prior may
learn, too, and then stays (`LearnedPrior`). With the critic done, the decoder may settle: a short part in which the
moments of new faces alone count. The encoder stays until the decoder is done; then it follows by the ELBO of
the first stage. Everything random is a function of (seed, step), so that a run that was stopped continues exactly: on a
CPU with the same number of threads, to the bit. What a run consists of is in `state`, what a step does in `steps`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from vae_runtime.config import ENCODER_FILE, PRIOR_FILE, ModelConfig
from vae_runtime.figures import image_grid, save_png
from vae_runtime.hub import HUB_PREFIX, resolve
from vae_runtime.images import load_image
from vae_runtime.ort.verify import read_verified
from vae_runtime.prior import Prior
from vae_train.adversarial.config import REFINE_FILE, RefineConfig
from vae_train.adversarial.critic import augment
from vae_train.adversarial.matching import FeatureMoments
from vae_train.adversarial.prior import widened
from vae_train.adversarial.state import Setup, State, make_setup, make_state, means, restore, save
from vae_train.adversarial.steps import follow_step, follows, posterior, settle_step, settles, train_step
from vae_train.config import CONFIG_FILE, TrainConfig
from vae_train.data.faces import Faces, load_faces
from vae_train.engine import checkpoint
from vae_train.engine.device import choose_precision, describe_device
from vae_train.engine.distributed import SINGLE_PROCESS
from vae_train.engine.held_out import evaluate_held_out
from vae_train.engine.initial import load_initial
from vae_train.engine.logger import Logger, make_bar, read_metrics
from vae_train.engine.rng import EYES, MOUTH
from vae_train.engine.run_folder import (
    Interrupted,
    StopRequest,
    advise_on_memory,
    catch_signals,
    disk_may_refuse,
    lock_run,
)
from vae_train.engine.train import describe_data, find_checkpoint
from vae_train.errors import CheckpointError, TrainingError, UsageError
from vae_train.export.fit_latents import fit_latents
from vae_train.model.figures import FIGURES
from vae_train.model.networks import VAE, fold_batch_norm
from vae_train.model.tensors import thinned, to_pixels, to_unit

SHEET = 36
"""New faces on the sheet that is drawn with each checkpoint, always of the same codes."""
_COLUMNS = 6
FIRST_PRIOR = "first_prior.npz"
"""In a run: the prior as it was at the start."""
_IMITATION = 2000  # steps in which a new decoder learns to draw like the old one
_BEFORE = 2**40  # numbers of steps for the random numbers of what happens before the first one
_CALIBRATION = 100  # real pictures that the scale of the features is measured on
_MATCHED = 6000  # real pictures that the moments of features are measured on
_UPDATE_INTERVAL = 2.0  # seconds between two looks at the losses


def refine(
    config: RefineConfig, networks: TrainConfig, start: VAE | None, prior: Prior | None, run: Path, device: torch.device
) -> Faces:
    """Tune the decoder until `config.images` new faces were drawn; return the faces it was trained on.

    networks: the settings of the networks and of the pictures. start: the model to begin with, BatchNorm folded away;
    None to continue the run in `run`. prior: of the codes; fitted to those of the training pictures if None.
    Writes into `run` what the first stage writes, so that `export` and `evaluate` take it as any run, and refine.json,
    first_prior.npz, prior.npz and sheets of new faces. Raises UsageError when another process works in `run`,
    TrainingError when the losses diverge, DataError and CheckpointError; Interrupted after a signal, when a checkpoint
    is saved.
    """
    networks = dataclasses.replace(networks, precision=choose_precision(networks.precision, device))
    mixed, warned = networks.precision == "bfloat16", set[Path]()
    with lock_run(run, SINGLE_PROCESS), advise_on_memory(networks, device):
        saved = find_checkpoint(run, SINGLE_PROCESS) if start is None else None
        faces = load_faces(networks.data, networks.image_size, networks.avatars, networks.seed)
        faces.check_trainable(config.batch_size)
        held_out = faces.held_out()
        data = describe_data(faces, held_out, saved, run)
        test = torch.from_numpy(faces.pixels[held_out]).to(device)
        if start is None:
            prior = first_prior(run)
        elif prior is None:
            prior = fit_latents(start, faces, mirrored=True).prior
        if start is not None:
            prior = widened(prior, config.widen)
        setup = make_setup(config, prior, torch.from_numpy(faces.pixels[~held_out]).to(device), mixed)
        state = make_state(setup, networks, start)
        if saved is not None:
            restore(state, saved)
        elif start is not None:
            calibrate(state, setup)
            if config.eyes:
                state.eyes.fit(setup.real, lambda step: setup.generator(_BEFORE + step, EYES))
            if config.mouth:
                state.mouth.fit(setup.real, lambda step: setup.generator(_BEFORE + step, MOUTH))
            imitate(state, start.to(device).eval(), setup)
            prior.save(run / FIRST_PRIOR)
        checkpoint.write(run / CONFIG_FILE, networks.to_json().encode())
        checkpoint.write(run / REFINE_FILE, config.to_json().encode())

        epoch = max(1, len(setup.real) // config.batch_size)
        logger = Logger(run, [line for line in read_metrics(run) if line["step"] <= state.step], False)
        with (
            catch_signals(SINGLE_PROCESS) as stop,
            make_bar(config.steps * config.batch_size, state.step * config.batch_size) as bar,
        ):
            while state.step < config.steps:
                ends = config.adversarial_steps, config.drawing_steps, config.steps
                part = next(end for end in ends if state.step < end)
                try:
                    train_until(min(part, (state.step // epoch + 1) * epoch), state, setup, bar, stop)
                except Interrupted:
                    save(state, epoch, data, run)
                    raise
                record = close_epoch(state, epoch, config) | {"device": describe_device(device)}
                figures = evaluate_held_out(state.average, test, networks)
                logger.add(record | {f"held_out_{name}": value for name, value in figures.items()})
                save(state, epoch, data, run)
                with disk_may_refuse(run / FIGURES, warned):
                    draw_sheet(state, run)
                bar.write(describe(logger.records[-1]))
        logger.close()
        return faces


def load_start(model: str, networks: TrainConfig) -> tuple[TrainConfig, VAE, Prior | None]:
    """The settings, the networks without BatchNorm, and the prior if there is one, of what a second stage starts from.

    model: an exported folder, "hf:owner/name", a run or one of its checkpoints. networks: gives the pictures.
    """
    settings, start = load_initial(model)
    if settings["preset"] != "base":
        raise UsageError(f"refine: {model} is of the preset {settings['preset']}, only base has a decoder to tune")
    fold_batch_norm(start)
    settings |= {"decoder": "fine", "batch_norm": False}
    return dataclasses.replace(networks, flip=True, **settings), start, exported_prior(model)


def exported_prior(model: str) -> Prior | None:
    """The prior of an exported model; None for a run, or where the model has none."""
    folder = resolve(model) if model.startswith(HUB_PREFIX) else Path(model)
    if not (folder / ENCODER_FILE).is_file():
        return None
    files = ModelConfig.load(folder).files
    if PRIOR_FILE not in files:
        return None
    return Prior.from_bytes(read_verified(folder / PRIOR_FILE, files[PRIOR_FILE]), str(folder / PRIOR_FILE))


def first_prior(run: Path) -> Prior:
    """What a run began with; CheckpointError for a run of a version before, which did not keep it."""
    if not (run / FIRST_PRIOR).is_file():
        raise CheckpointError(f"{run} has no {FIRST_PRIOR}; start a new run from the exported model")
    return Prior.load(run / FIRST_PRIOR)


def train_until(end: int, state: State, setup: Setup, bar: tqdm[Any], stop: StopRequest) -> None:
    """Steps of one kind up to number `end`. Raises Interrupted after the step in which `stop` received a signal."""
    started = looked = time.monotonic()
    name, take_step = ("critic_loss", train_step)
    if settles(state, setup.config):
        name, take_step = ("moment_distance", settle_step)
    elif follows(state, setup.config):
        name, take_step = ("squared_error", follow_step)
    while state.step < end:
        take_step(state, setup)
        bar.update(setup.config.batch_size)
        if time.monotonic() - looked > _UPDATE_INTERVAL:
            looked = time.monotonic()
            bar.set_postfix_str(f"{name.replace('_', ' ')} {means(state)[name]:.3g}", refresh=False)
        if stop.signal_number:
            state.seconds += time.monotonic() - started
            raise Interrupted(stop.signal_number)
    state.seconds += time.monotonic() - started


@torch.no_grad()
def calibrate(state: State, setup: Setup) -> None:
    """Measure the scale of each feature, and the moments that are matched, on some real pictures."""
    chosen = thinned(setup.real, _CALIBRATION)
    state.critic.projection.calibrate(
        setup.features(augment(to_unit(chosen), setup.generator(_BEFORE), setup.config.noise))
    )
    batches = thinned(setup.real, _MATCHED).split(_CALIBRATION)
    for moments, matcher in zip(state.moments, setup.matchers, strict=True):
        assert isinstance(moments, FeatureMoments)
        moments.calibrate(matcher(to_unit(batch)) for batch in batches)


def imitate(state: State, start: VAE, setup: Setup) -> None:
    """Teach a decoder of another kind than that of `start` to draw like it; nothing to do if they are of one kind."""
    if start.decoder_kind == state.model.decoder_kind:
        return
    optimizer = torch.optim.Adam(state.model.decoder.parameters(), 1e-3, betas=(0.9, 0.99))
    for step in tqdm(range(_IMITATION), desc="imitating the decoder as it was", unit="step", disable=None):
        generator = setup.generator(_BEFORE + 1 + step)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1.01 - step / _IMITATION)
        kept = setup.pictures(setup.config.batch_size // 2, generator)
        new = state.average_prior(setup.draws(0, generator))
        codes = torch.cat([new, posterior(start, kept, generator)])
        with setup.autocast():
            with torch.no_grad():
                wanted = start.decoder(codes)
            error = functional.mse_loss(state.model.decoder(codes), wanted)
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
    state.average.load_state_dict(state.model.state_dict())


def close_epoch(state: State, epoch: int, config: RefineConfig) -> dict[str, Any]:
    """End the epoch in `state` and return its figures; TrainingError if a loss is not finite."""
    figures, steps = means(state), int(state.sums[-1])
    if state.step > config.adversarial_steps:
        name = "moment_distance" if state.step <= config.drawing_steps else "squared_error"
        figures = {name: figures[name]}
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
def draw_sheet(state: State, run: Path) -> None:
    """New faces of the same codes at each checkpoint; progress.png has the first row of each sheet."""
    folder, device = run / FIGURES / "new_faces", state.sums.device
    codes = torch.from_numpy(state.average_prior.to_prior().sample(SHEET, rng=0)).to(device)
    folder.mkdir(parents=True, exist_ok=True)
    sheet = image_grid(to_pixels(state.average.decoder(codes)), columns=_COLUMNS)
    save_png(sheet, folder / f"{state.step:09d}.png")
    height = len(sheet) // (len(codes) // _COLUMNS)
    rows = [load_image(path)[:height] for path in sorted(folder.glob("*.png"))]
    save_png(np.concatenate(rows), run / FIGURES / "progress.png")


def describe(record: dict[str, Any]) -> str:
    """A line about an epoch."""
    critic = record.get("train_critic_loss")
    settled = "the decoder settles" if "train_moment_distance" in record else "the encoder follows"
    done = settled if critic is None else f"critic {critic:.2f}"
    return (
        f"{record['images']:,d} pictures: {done}, held out "
        f"{record['held_out_psnr']:.2f} dB, {record['held_out_bits_per_dim']:.3f} bits/dim; "
        f"{record['images_per_second']:.0f} images/s"
    )
