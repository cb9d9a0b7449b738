"""The recipe of a run, top to bottom.

The pictures stay on the device as uint8. Their order and views are functions of (seed, epoch) and the noise one of
(seed, step), so a run that was stopped anywhere continues exactly as if it had not been: on a CPU with the same number
of threads the weights are the same to the bit. Nothing in the loop waits for the device: the losses add up there, and
are read back twice a second.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from vae_runtime.files import write_atomically
from vae_train.config import CONFIG_FILE, TrainConfig
from vae_train.data.faces import Faces, load_faces
from vae_train.data.sources import summarize
from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.device import choose_precision, describe_device
from vae_train.engine.distributed import SINGLE_PROCESS, DistributedContext, process_group
from vae_train.engine.held_out import draw, evaluate_held_out
from vae_train.engine.initial import load_initial
from vae_train.engine.loader import Loader
from vae_train.engine.logger import Logger, make_bar, read_metrics
from vae_train.engine.run_folder import (
    SKIPPED_FILE,
    Interrupted,
    StopRequest,
    advise_on_memory,
    catch_signals,
    disk_may_refuse,
    lock_run,
)
from vae_train.engine.state import BEST, CHECKPOINTS, ERROR, IMAGES, KL, SKIPPED, State, make_state, restore, save
from vae_train.engine.step import SHARPNESS_WEIGHT, Step, make_batch, make_step, schedule_values
from vae_train.errors import CheckpointError, DataError, TrainingError, UsageError
from vae_train.model.figures import FIGURES
from vae_train.model.losses import elbo_terms
from vae_train.model.tensors import to_pixels

MAX_SKIPPED = 10
"""Steps of an epoch whose loss or gradient may be non-finite; at one more the run stops."""
DIVERGED = 10.0
"""Mean loss in nats per color value above which a run has diverged; a gray image costs less than 1."""

_PROGRESS_INTERVAL = 0.5  # seconds between two looks at the running loss, each of which waits for the device
_DRAW_INTERVAL = 20.0  # seconds between two refreshes of the figures
_SIGNAL_INTERVAL = 8  # steps between two exchanges among processes whether one of them was asked to stop


def train(
    config: TrainConfig,
    run: Path,
    device: torch.device,
    resume: bool = False,
    tensorboard: bool = False,
    context: DistributedContext = SINGLE_PROCESS,
) -> Faces:
    """Train until `config.epochs` are complete; return the faces it was trained on.

    Writes config.json, metrics.jsonl, checkpoints/ and figures/ into `run`, and events/ with `tensorboard`. Of several
    processes that train together, the main one writes. SIGINT, SIGTERM and SIGHUP save a checkpoint and raise
    Interrupted. Raises UsageError when another process trains in `run`, TrainingError when the loss diverges or the
    memory does not suffice, DataError and CheckpointError.
    """
    config = dataclasses.replace(config, precision=choose_precision(config.precision, device))
    with lock_run(run, context):
        saved = find_checkpoint(run, context) if resume else None
        faces = load_faces(config.data, config.image_size, config.avatars, config.seed, config.labels)
        held_out = faces.held_out()
        data = describe_data(faces, held_out, saved, run)
        check_counts(config, faces, context)
        loader = Loader(faces.pixels, np.flatnonzero(~held_out), config, device, context)
        images = config.epochs * loader.batches * config.batch_size
        bar = make_bar(images, shown=context.is_main)
        with process_group(context), catch_signals(context) as stop, bar:
            state = start_state(config, device, context, saved)
            writer = None
            if context.is_main:
                report(config, faces, held_out, loader, run)
                checkpoint.write(run / CONFIG_FILE, config.to_json().encode())
                logger = Logger(run, [line for line in read_metrics(run) if line["epoch"] <= state.epoch], tensorboard)
                test_pixels = torch.from_numpy(faces.pixels[held_out]).to(device)
                writer = RunWriter(config, run, data, test_pixels, describe_device(device, context), logger)
            bar.update((state.epoch * loader.batches + state.batch) * config.batch_size)
            with advise_on_memory(config, device):
                step = make_step(state, config, loader)
                while state.epoch < config.epochs and not has_stalled(
                    writer.logger if writer else None, config, context
                ):
                    try:
                        train_epoch(state, config, loader, step, bar, stop)
                    except Interrupted:
                        if writer is not None:
                            save(state, state.epoch * loader.batches + state.batch, run, data)
                        raise
                    record = close_epoch(state, config, loader)
                    if writer is not None:
                        bar.write(writer.finish_epoch(state, record))
            if writer is not None:
                writer.logger.close()
        return faces


def start_state(
    config: TrainConfig, device: torch.device, context: DistributedContext, saved: Checkpoint | None
) -> State:
    """The state of a checkpoint, or a new one, with the weights of `config.init` if it names a model."""
    state = make_state(config, device, context)
    if saved is not None:
        restore(state, saved)
    elif config.init:
        weights = load_initial(config.init, config.decoder, config.seed)[1].state_dict()
        state.model.load_state_dict(weights)
        state.average.load_state_dict(weights)
    return state


@dataclass
class RunWriter:
    """Writes what each epoch of a run leaves in its folder: metrics, checkpoints and figures."""

    config: TrainConfig
    run: Path
    data: dict[str, Any]
    """Of `describe_data`."""
    test_pixels: Tensor
    """The held-out pictures (n, 3, S, S) uint8, on the device."""
    device: str
    """Of `describe_device`."""
    logger: Logger
    last_drawn: float = -math.inf
    warned: set[Path] = field(default_factory=set)
    """See `disk_may_refuse`."""

    def finish_epoch(self, state: State, record: dict[str, Any]) -> str:
        """Evaluate an epoch, log it, save it and, now and then, draw it; a line about it."""
        figures = evaluate_held_out(state.average, self.test_pixels, self.config)
        held_out = {f"held_out_{name}": value for name, value in figures.items()}
        self.logger.add(record | {"device": self.device} | held_out)
        if self.config.patience and best_epoch(self.logger) == state.epoch:
            save(state, record["step"], self.run, self.data, BEST, keep=1)
        save(state, record["step"], self.run, self.data)
        if time.monotonic() - self.last_drawn > _DRAW_INTERVAL or state.epoch == self.config.epochs:
            with disk_may_refuse(self.run / FIGURES, self.warned):
                draw(state.average, to_pixels(self.test_pixels[:64]), self.logger.records, self.run, self.config)
            self.last_drawn = time.monotonic()
        return describe(self.logger.records[-1], self.config.epochs)


def train_epoch(
    state: State, config: TrainConfig, loader: Loader, step: Step, bar: tqdm[Any], stop: StopRequest
) -> None:
    """The rest of one epoch. Raises Interrupted after the batch in which `stop` received a signal."""
    state.model.train()
    device, context = loader.device, loader.context
    schedule = schedule_values(config, state.epoch, loader.batches)
    # Left out while it weighs nothing; on a GPU the step is recorded once, with it.
    sharpen = device.type == "cuda" or bool(schedule[:, SHARPNESS_WEIGHT].any())
    schedule = schedule.to(device)
    started = looked = time.monotonic()

    for pixels, views in loader.epoch(state.epoch, state.batch):
        number = state.epoch * loader.batches + state.batch
        step(make_batch(pixels, views, number, schedule[state.batch], config, loader, sharpen))
        state.batch += 1
        bar.update(config.batch_size)
        if time.monotonic() - looked > _PROGRESS_INTERVAL:
            looked = time.monotonic()
            loss = running_loss(state, config, pixels[0].numel())
            bar.set_postfix_str(f"epoch {state.epoch + 1}/{config.epochs}, loss {loss:.2f}", refresh=False)
        if context.world_size == 1 or number % _SIGNAL_INTERVAL == 0:
            signal_number = context.all_reduce_max(stop.signal_number)
            if signal_number:
                state.seconds += time.monotonic() - started
                raise Interrupted(signal_number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    state.seconds += time.monotonic() - started


def running_loss(state: State, config: TrainConfig, dimensions: int, allowed: int = MAX_SKIPPED) -> float:
    """The negative ELBO of the epoch so far, nats per image; TrainingError if more steps than allowed were skipped."""
    error, kl, images, skipped, last = state.sums.tolist()
    if skipped > allowed:
        raise TrainingError(
            f"epoch {state.epoch + 1}: the loss or its gradient was not finite in {skipped:.0f} steps, the last one at "
            f"batch {last + 1:.0f}; the last checkpoint is good, try a smaller --learning-rate or a --clip"
        )
    images = max(images, 1.0)
    return elbo_terms(error / images, kl / images, dimensions, config.likelihood, config.beta)["negative_elbo"]


def close_epoch(state: State, config: TrainConfig, loader: Loader) -> dict[str, Any]:
    """End the epoch in `state` and return its record; TrainingError if the loss diverges."""
    dimensions = loader.source[0].numel()
    running_loss(state, config, dimensions, min(MAX_SKIPPED, loader.batches - 1))
    totals = loader.context.all_reduce_sum(state.sums).tolist()
    images, skipped = totals[IMAGES], int(state.sums[SKIPPED])
    figures = elbo_terms(totals[ERROR] / images, totals[KL] / images, dimensions, config.likelihood, config.beta)
    check_divergence(figures["negative_elbo"], state.epoch, config, dimensions)
    speed = images / max(state.seconds, 1e-9)
    state.epoch, state.batch, state.seconds = state.epoch + 1, 0, 0.0
    state.sums.zero_()
    return {
        "epoch": state.epoch,
        "step": state.epoch * loader.batches,
        **{f"train_{name}": value for name, value in figures.items()},
        **({"skipped_steps": skipped} if skipped else {}),
        "images_per_second": round(speed, 1),
    }


def check_divergence(loss: float, epoch: int, config: TrainConfig, dimensions: int) -> None:
    """Raise TrainingError if the mean loss of an epoch, counted from 0, shows divergence.

    The first two epochs of several are exempt: their first steps may be anywhere.
    """
    free = config.beta * config.free_bits * config.latent_dim
    if epoch >= min(2, config.epochs - 1) and loss > DIVERGED * dimensions + free:
        raise TrainingError(
            f"epoch {epoch + 1}: the loss diverges, {loss:.4g} nats per image on average; it is not saved and the last "
            "checkpoint stays; start again with a smaller --learning-rate, a --warmup or a --clip"
        )


def best_epoch(logger: Logger) -> int:
    """The epoch with the smallest held-out loss."""
    best = min(logger.records, key=lambda record: record.get("held_out_negative_elbo", math.inf))
    return int(best["epoch"])


def has_stalled(logger: Logger | None, config: TrainConfig, context: DistributedContext) -> bool:
    """Whether the held-out loss has not improved for `config.patience` epochs; the main process, which has the logger,
    decides for all."""
    if not config.patience:
        return False
    stalled = False
    if logger is not None and logger.records:
        best = best_epoch(logger)
        stalled = logger.records[-1]["epoch"] - best >= config.patience
        if stalled:
            print(f"stopping early: no better held-out loss than that of epoch {best}", file=sys.stderr)
    return bool(context.all_reduce_max(int(stalled)))


def describe(record: dict[str, Any], epochs: int) -> str:
    """One line about one epoch."""
    return (
        f"epoch {record['epoch']}/{epochs}  train {record['train_negative_elbo']:.2f}  "
        f"held-out {record['held_out_negative_elbo']:.2f} nats (reconstruction {record['held_out_reconstruction']:.2f} "
        f"+ KL {record['held_out_kl']:.2f}), {record['held_out_bits_per_dim']:.3f} bits/dim, "
        f"PSNR {record['held_out_psnr']:.2f} dB, {record['images_per_second']:.0f} images/s"
    )


def find_checkpoint(run: Path, context: DistributedContext) -> Checkpoint | None:
    """The checkpoint to resume from; None if the run ended before its first one.

    Raises CheckpointError if there are checkpoints that cannot be used, or if all of them are gone.
    """
    saved, damaged = checkpoint.load_latest(run / CHECKPOINTS)
    if context.is_main:
        for sentence in damaged:
            print(f"warning: {sentence}; going back to the one before", file=sys.stderr)
    if saved is None:
        epochs = len(read_metrics(run))
        if epochs > 1:  # the first line is written before the first checkpoint
            raise CheckpointError(
                f"{run / CHECKPOINTS}: empty, although {epochs} epochs are recorded; restore its files, or start a new "
                "run in another folder"
            )
        if context.is_main:
            print(f"no checkpoint in {run} yet, starting from the first epoch", file=sys.stderr)
    return saved


def describe_data(faces: Faces, held_out: NDArray[np.bool_], saved: Checkpoint | None, run: Path) -> dict[str, Any]:
    """Name, number and digest of the training pictures; DataError if those of the checkpoint were others.

    The digest of the pictures decides, not their path.
    """
    data = {"name": faces.name, "count": int((~held_out).sum()), "sha256": faces.sha256}
    if saved is None:
        return data
    noted: dict[str, Any] = saved.state["data"]
    if not faces.matches(noted["sha256"]) or noted["count"] != data["count"]:
        raise DataError(
            f"--resume: {faces.name} holds other pictures than {run} was trained on ({noted['name']}, {noted['count']} "
            "of them); give the original ones with --data"
        )
    return noted


def check_counts(config: TrainConfig, faces: Faces, context: DistributedContext) -> None:
    """Raise DataError if the pictures are too few or too alike, UsageError if a batch cannot be split evenly."""
    faces.check_trainable(config.batch_size)
    if config.batch_size % context.world_size:
        raise UsageError(f"--batch-size {config.batch_size}: not a multiple of the {context.world_size} processes")


def report(config: TrainConfig, faces: Faces, held_out: NDArray[np.bool_], loader: Loader, run: Path) -> None:
    """Print what the run is trained on, and list the pictures that were left out in a file of the run."""
    processes = loader.context.world_size
    print(
        f"{len(faces)} faces of {faces.name}: {int((~held_out).sum())} to train on, {int(held_out.sum())} held out; "
        f"{faces.duplicates} duplicates, {len(faces.unreadable)} unreadable, {len(faces.skipped)} skipped\n"
        f"{loader.report}; {config.precision}, {config.batch_size} pictures a step"
        + (f" on {processes} processes" if processes > 1 else ""),
        file=sys.stderr,
    )
    if labels := faces.describe_labels():
        print(labels, file=sys.stderr)
    if left_out := faces.unreadable + faces.skipped:
        with disk_may_refuse(run / SKIPPED_FILE, set()):
            write_atomically(run / SKIPPED_FILE, "\n".join(left_out).encode(errors="backslashreplace") + b"\n")
        reasons = [f"{len(faces.unreadable)} unreadable"] * bool(faces.unreadable)
        reasons += [summarize(faces.skipped)] * bool(faces.skipped)
        print(f"left out: {'; '.join(reasons)}; all of them are listed in {run / SKIPPED_FILE}", file=sys.stderr)
