"""The training loop, top to bottom.

The pictures stay on the device as uint8. Their order and views are functions of (seed, epoch) and the noise one of
(seed, step), so a run that was stopped anywhere goes on exactly as if it had not been: on a CPU with the same number of
threads the weights are the same to the bit. Nothing in the loop waits for the device: the losses add up there, and are
read back twice a second.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from vae_runtime.files import write_atomically
from vae_runtime.images import Pixels
from vae_train.config import CONFIG_FILE, TrainConfig
from vae_train.data.faces import Faces, load_faces
from vae_train.data.sources import summarize
from vae_train.engine import checkpoint
from vae_train.engine.cuda_graph import Step, captured, compiled
from vae_train.engine.distributed import ALONE, World, joined, wrapped
from vae_train.engine.loader import HELD_OUT, KERNELS, NOISE, Feed, augment, free_memory, stream, to_unit
from vae_train.engine.logger import Log, read_metrics
from vae_train.engine.schedule import average_weight, kl_weight, learning_rate, sharpness_weight
from vae_train.engine.state import (
    ERROR,
    IMAGES,
    KL,
    LAST_SKIPPED,
    SKIPPED,
    State,
    make_state,
    restore,
    save,
    update_average,
)
from vae_train.errors import TrainingError, UsageError
from vae_train.model.figures import FIGURES, draw_curve, draw_faces
from vae_train.model.losses import (
    PATCH_KERNELS,
    bits_per_dim,
    gaussian_nll,
    kl_divergence,
    kl_per_latent,
    negative_elbo,
    optimal_variance,
    patch_distance,
    patch_kernels,
    reconstruction_nats,
    squared_error,
    with_free_bits,
)
from vae_train.model.metrics import PATCH, active_units, psnr
from vae_train.model.networks import VAE, reparameterize

SKIPPED_FILE = "skipped.txt"
MAX_SKIPPED = 10
"""Steps of an epoch whose loss or gradient may be no number; at one more the run stops."""

SHARPNESS = 3
"""Column of `dials` with the weight of the patch distance."""

_EVALUATION_BATCH = 500
_LOOK_EVERY = 0.5  # seconds between two looks at the running loss, each of which waits for the device
_DRAW_EVERY = 20.0  # seconds between two refreshes of the figures
_AGREE_EVERY = 8  # steps between two questions among processes whether one of them was asked to stop


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


def train(
    config: TrainConfig,
    run: Path,
    device: torch.device,
    resume: bool = False,
    tensorboard: bool = False,
    world: World = ALONE,
) -> Faces:
    """Train until `config.epochs` are complete; return the faces it was trained on.

    Writes config.json, metrics.jsonl, checkpoints/ and figures/ into `run`, and events/ with `tensorboard`. Of the
    processes of `world`, which train together, the first one writes. Ctrl-C and SIGTERM save a checkpoint and raise
    Interrupted. Raises UsageError when another process trains in `run`, TrainingError when the loss is no number any
    more or the memory does not suffice, DataError and CheckpointError.
    """
    config = dataclasses.replace(config, precision=choose_precision(config.precision, device))
    with _locked(run, world):
        faces = load_faces(config.data, config.image_size, config.avatars, config.seed)
        held_out = faces.held_out()
        count = int((~held_out).sum())
        data = {"name": faces.name, "count": count, "sha256": faces.sha256}
        _check_counts(config, faces, world)
        feed = Feed(faces.pixels, np.flatnonzero(~held_out), config, device, world)
        test_pixels = torch.from_numpy(faces.pixels[held_out]).to(device)
        shown, last_drawn = to_pixels(test_pixels[:64]), -math.inf

        with joined(world), _signals() as stop, _bar(config, feed) as bar:
            state = make_state(config, device, world)
            if resume and not restore(state, run, data) and world.leads:
                print(f"no checkpoint in {run} yet, starting from the first epoch", file=sys.stderr)
            if world.leads:
                _report(config, faces, held_out, feed, run)
                checkpoint.write(run / CONFIG_FILE, config.to_json().encode())
                log = Log(run, [line for line in read_metrics(run) if line["epoch"] <= state.epoch], tensorboard)
            bar.update((state.epoch * feed.batches + state.batch) * config.batch_size)
            with _memory_advice(config, state):
                step = make_step(state, config, feed)
                while state.epoch < config.epochs:
                    try:
                        train_epoch(state, config, feed, step, bar, stop)
                    except Interrupted:
                        if world.leads:
                            save(state, state.epoch * feed.batches + state.batch, run, data)
                        raise
                    record = close_epoch(state, config, feed)
                    if world.leads:
                        held_out_figures = evaluate_held_out(state.average, test_pixels, config)
                        held_out_record = {f"held_out_{name}": value for name, value in held_out_figures.items()}
                        log.add(record | {"device": describe_device(device, world)} | held_out_record)
                        save(state, record["step"], run, data)
                        bar.write(describe(log.records[-1], config.epochs))
                        if time.monotonic() - last_drawn > _DRAW_EVERY or state.epoch == config.epochs:
                            draw(state.average, shown, log.records, run, config)
                            last_drawn = time.monotonic()
            if world.leads:
                log.close()
        return faces


def train_epoch(state: State, config: TrainConfig, feed: Feed, step: Step, bar: tqdm[Any], stop: list[int]) -> None:
    """The rest of one epoch. Raises Interrupted after the batch in which `stop` received a signal."""
    state.model.train()
    device, size, world = feed.device, config.batch_size, feed.world
    table = dials(config, state.epoch, feed.batches)
    # Left out while it weighs nothing; on a GPU the step is recorded once, with it.
    sharpen = device.type == "cuda" or bool(table[:, SHARPNESS].any())
    table = table.to(device)
    started = looked = time.monotonic()

    for pixels, views in feed.epoch(state.epoch, state.batch):
        number = state.epoch * feed.batches + state.batch
        noise = stream(config.seed, NOISE, number, device)
        eps = world.share(torch.randn(size, config.latent_dim, generator=noise, device=device))
        step(pixels, views, eps, draw_kernels(config, number, device, sharpen), table[state.batch])
        state.batch += 1
        bar.update(size)
        if time.monotonic() - looked > _LOOK_EVERY:
            looked = time.monotonic()
            loss = check(state, config, pixels[0].numel())
            bar.set_postfix_str(f"epoch {state.epoch + 1}/{config.epochs}, loss {loss:.2f}", refresh=False)
        if world.size == 1 or number % _AGREE_EVERY == 0:
            signal_number = world.agree(stop[0] if stop else 0)
            if signal_number:
                state.seconds += time.monotonic() - started
                raise Interrupted(signal_number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    state.seconds += time.monotonic() - started


def train_step(
    state: State,
    network: Any,
    config: TrainConfig,
    world: World,
    pixels: Tensor,
    views: Tensor,
    eps: Tensor,
    kernels: Tensor,
    dials: Tensor,
) -> None:
    """One step of the optimiser on this process's share of a batch; nothing in it waits for the device.

    network: `state.model`, or what it was wrapped in. pixels (n, 3, S, S) uint8, views (n, 3): see
    `augment`, eps (n, latent_dim), kernels: see `draw_kernels`, dials (4,): see `dials`.
    A step whose loss or gradient is no number changes nothing but the tally.
    """
    rate, kl_share, newest, sharp_share = dials
    image = to_unit(augment(pixels, views) if config.flip or config.shift else pixels)
    buffers = [buffer.clone() for buffer in state.model.buffers()]
    with torch.autocast(image.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        reconstruction, mu, logvar = network(image, eps)
    error, kl = squared_error(reconstruction, image), kl_per_latent(mu, logvar)
    loss = objective(error, kl, config.beta * kl_share, config, image[0].numel(), world)
    if len(kernels):
        weight = config.sharpness * sharp_share * image[0].numel()
        loss = loss + weight * patch_distance(reconstruction, image, kernels)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()

    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    norm = get_total_norm(gradients)
    if config.clip:  # Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013)
        clip_grads_with_norm_(state.model.parameters(), config.clip, norm)
    good = norm.isfinite() & world.mean(loss.detach()).isfinite()
    for buffer, before in zip(state.model.buffers(), buffers, strict=True):
        buffer.copy_(torch.where(good, buffer, before))
    state.optimizer.param_groups[0]["lr"].copy_(rate)
    # The fused optimiser skips its step if this is 1, as it does under a GradScaler.
    state.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
    state.optimizer.step()
    state.newest.copy_(newest * good)
    update_average(state)

    tally, done = state.tally, len(image)
    tally[LAST_SKIPPED] = torch.where(good, tally[LAST_SKIPPED], tally[IMAGES] / done + tally[SKIPPED])
    tally[SKIPPED] += ~good
    sums = torch.stack([error.detach().sum(), kl.detach().sum(), torch.full_like(norm, done)])
    tally[: IMAGES + 1] += torch.where(good, sums, 0)


def objective(
    error: Tensor, kl: Tensor, beta: Tensor, config: TrainConfig, dimensions: int, world: World = ALONE
) -> Tensor:
    """What a step makes smaller: the negative ELBO of `config`, the mean over the batch.

    error (n,), kl (n, latent_dim): see `losses`. The fitted variance and the free bits are those of the whole batch.
    """
    reconstruction, penalty = error, kl.sum(1)
    if config.likelihood == "gaussian":
        variance = optimal_variance(world.mean(error.detach().mean()), dimensions)
        reconstruction = gaussian_nll(error, variance, dimensions)
    if config.free_bits:
        penalty = with_free_bits(kl, world.mean(kl.detach().mean(0)), config.free_bits)
    return negative_elbo(reconstruction, penalty, beta).mean()


def draw_kernels(config: TrainConfig, step: int, device: torch.device, sharpen: bool = True) -> Tensor:
    """The directions in which the patches of a step are compared, (K, 3, 7, 7); none where they are not to be."""
    if not (config.sharpness and sharpen):
        return torch.empty(0, 3, PATCH, PATCH, device=device)
    noise = stream(config.seed, KERNELS, step, device)
    return patch_kernels(torch.randn(PATCH_KERNELS, 3, PATCH, PATCH, generator=noise, device=device))


def dials(config: TrainConfig, epoch: int, batches: int) -> Tensor:
    """(batches, 4): the learning rate, the weight of the KL divergence, the newest weights' share of their average and
    the weight of the patch distance, at each step of an epoch."""
    steps = range(epoch * batches, (epoch + 1) * batches)
    return torch.tensor(
        [
            (
                learning_rate(step, config.epochs * batches, config.learning_rate, config.warmup, config.schedule),
                kl_weight(step, config.kl_warmup),
                average_weight(step, config.ema),
                sharpness_weight(step, config.epochs * batches),
            )
            for step in steps
        ]
    )


def make_step(state: State, config: TrainConfig, feed: Feed) -> Step:
    """`train_step` for this run and device: on one GPU compiled, and recorded as a CUDA graph."""
    network = compiled(wrapped(state.model, feed.world), feed.device)
    step = partial(train_step, state, network, config, feed.world)
    if feed.device.type != "cuda" or feed.world.size > 1:
        return step
    shape = (config.batch_size, *feed.source.shape[1:])
    tally = state.tally.clone()
    state.model.train()
    recorded = captured(
        step,
        torch.zeros(shape, dtype=torch.uint8, device=feed.device),
        torch.zeros(config.batch_size, 3, dtype=torch.int64, device=feed.device),
        torch.zeros(config.batch_size, config.latent_dim, device=feed.device),
        draw_kernels(config, 0, feed.device),
        torch.zeros(4, device=feed.device),
    )
    state.tally.copy_(tally)
    return recorded


def check(state: State, config: TrainConfig, dimensions: int, allowed: int = MAX_SKIPPED) -> float:
    """The running negative ELBO of the epoch, nats per image; TrainingError if more steps than allowed were skipped."""
    error, kl, images, skipped, last = state.tally.tolist()
    if skipped > allowed:
        raise TrainingError(
            f"epoch {state.epoch + 1}: the loss or its gradient was no number in {skipped:.0f} steps, the last one at "
            f"batch {last + 1:.0f}; the last checkpoint is good, try a smaller --learning-rate or a --clip"
        )
    images = max(images, 1.0)
    return _bound(error / images, kl / images, dimensions, config)["negative_elbo"]


def close_epoch(state: State, config: TrainConfig, feed: Feed) -> dict[str, Any]:
    """End the epoch in `state` and return its figures."""
    dimensions = feed.source[0].numel()
    check(state, config, dimensions, min(MAX_SKIPPED, feed.batches - 1))
    totals = feed.world.sum(state.tally).tolist()
    images, skipped = totals[IMAGES], int(state.tally[SKIPPED])
    figures = _bound(totals[ERROR] / images, totals[KL] / images, dimensions, config)
    speed = images / max(state.seconds, 1e-9)
    state.epoch, state.batch, state.seconds = state.epoch + 1, 0, 0.0
    state.tally.zero_()
    return {
        "epoch": state.epoch,
        "step": state.epoch * feed.batches,
        **{f"train_{name}": value for name, value in figures.items()},
        **({"skipped_steps": skipped} if skipped else {}),
        "images_per_second": round(speed, 1),
    }


@torch.no_grad()
def evaluate_held_out(model: VAE, pixels: Tensor, config: TrainConfig) -> dict[str, float]:
    """The bound and its parts on held-out pictures (n, 3, S, S) uint8, with one fixed draw of z a picture.

    negative_elbo, reconstruction, kl: nats per image. squared_error: its sum, per image. bits_per_dim: see `losses`.
    psnr: dB, of decode(mu), the mean of the pictures' own. active_units: latents whose mu varies by more than 0.01
    (Burda et al. 2016).
    """
    model.eval()
    noise = stream(config.seed, HELD_OUT, 0, pixels.device)
    errors, kls, psnrs, mus = [], [], [], []
    for part in pixels.split(_EVALUATION_BATCH):
        image = to_unit(part)
        mu, logvar = model.encoder(image)
        eps = torch.randn(mu.shape, generator=noise, device=pixels.device)
        errors.append(squared_error(model.decoder(reparameterize(mu, logvar, eps)), image))
        kls.append(kl_divergence(mu, logvar))
        psnrs.append(psnr(model.decoder(mu), image))
        mus.append(mu)
    error, kl = (torch.cat(values).double().mean().item() for values in (errors, kls))
    return {
        **_bound(error, kl, pixels[0].numel(), config),
        "psnr": torch.cat(psnrs).mean().item(),
        "active_units": active_units(torch.cat(mus)),
    }


def _bound(error: float, kl: float, dimensions: int, config: TrainConfig) -> dict[str, float]:
    """The negative ELBO and its parts, from the means of the squared error and of the KL divergence."""
    reconstruction = reconstruction_nats(config.likelihood, error, dimensions)
    return {
        "negative_elbo": reconstruction + config.beta * kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "squared_error": error,
        "bits_per_dim": bits_per_dim(error, kl, dimensions),
    }


def to_pixels(images: Tensor) -> Pixels:
    """(n, 3, S, S), uint8 or float in [0, 1] -> uint8 (n, S, S, 3) in NumPy"""
    if images.dtype != torch.uint8:
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


@torch.no_grad()
def draw(model: VAE, faces: Pixels, history: list[dict[str, Any]], run: Path, config: TrainConfig) -> None:
    """Refresh the figures of a run from the model as it stands."""
    model.eval()
    device = next(model.parameters()).device

    def encode(images: Pixels) -> Any:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        return model.encoder(to_unit(batch))[0].cpu().numpy()

    def decode(z: Any) -> Pixels:
        return to_pixels(model.decoder(torch.from_numpy(z).to(device)))

    caption = f"{config.preset} {config.image_size}x{config.image_size}, epoch {len(history)}"
    draw_faces(run / FIGURES, faces, encode, decode, caption)
    draw_curve(run / FIGURES, history, caption)


def choose_device(name: str, world: World = ALONE) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:n"; UsageError if it was asked for by name and is not there.

    Of several processes, each one gets the GPU of its own number.
    """
    if name == "auto" and not torch.cuda.is_available():
        if world.leads:
            print("training on the CPU: torch sees no CUDA device", file=sys.stderr)
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    if device.type == "cuda":
        device = torch.device("cuda", world.local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device, world: World = ALONE) -> str:
    """ "NVIDIA H200", or "CPU (AMD EPYC), 2 threads"; with their number where several processes train together."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        able: Any = getattr(torch.cpu, "get_capabilities", dict)()
        model = able.get("cpu_name", platform.machine())
        threads = torch.get_num_threads()
        where = f"CPU ({model}), {threads} thread{'s' if threads > 1 else ''}"
    return where if world.size == 1 else f"{world.size} x {where}"


def choose_precision(name: str, device: torch.device) -> str:
    """ "float32" or "bfloat16"; for "auto" the latter where the device multiplies in it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able: Any = getattr(torch.cpu, "get_capabilities", dict)()
        native = able.get("avx512_bf16", False) or able.get("amx_bf16", False)
    return "bfloat16" if native else "float32"


def describe(record: dict[str, Any], epochs: int) -> str:
    """One line about one epoch."""
    return (
        f"epoch {record['epoch']}/{epochs}  train {record['train_negative_elbo']:.2f}  "
        f"held-out {record['held_out_negative_elbo']:.2f} nats (reconstruction {record['held_out_reconstruction']:.2f} "
        f"+ KL {record['held_out_kl']:.2f}), {record['held_out_bits_per_dim']:.3f} bits/dim, "
        f"PSNR {record['held_out_psnr']:.2f} dB, {record['images_per_second']:.0f} images/s"
    )


def _check_counts(config: TrainConfig, faces: Faces, world: World) -> None:
    faces.check_trainable(config.batch_size)
    if config.batch_size % world.size:
        raise UsageError(f"--batch-size {config.batch_size}: not a multiple of the {world.size} processes")


def _report(config: TrainConfig, faces: Faces, held_out: np.ndarray[Any, Any], feed: Feed, run: Path) -> None:
    print(
        f"{len(faces)} faces of {faces.name}: {int((~held_out).sum())} to train on, {int(held_out.sum())} held out; "
        f"{faces.duplicates} duplicates, {len(faces.unreadable)} unreadable, {len(faces.skipped)} skipped\n"
        f"{feed.report}; {config.precision}, {config.batch_size} pictures a step"
        + (f" on {feed.world.size} processes" if feed.world.size > 1 else ""),
        file=sys.stderr,
    )
    if left_out := faces.unreadable + faces.skipped:
        path = write_atomically(run / SKIPPED_FILE, "\n".join(left_out) + "\n")
        reasons = [f"{len(faces.unreadable)} unreadable"] * bool(faces.unreadable)
        reasons += [summarize(faces.skipped)] * bool(faces.skipped)
        print(f"left out: {'; '.join(reasons)}; all of them are listed in {path}", file=sys.stderr)


def _bar(config: TrainConfig, feed: Feed) -> tqdm[Any]:
    """The progress bar, of the leading process alone; rarely updated where it goes into a log file."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    total = config.epochs * feed.batches * config.batch_size
    return tqdm(total=total, unit="img", unit_scale=True, mininterval=interval, disable=not feed.world.leads)


@contextmanager
def _memory_advice(config: TrainConfig, state: State) -> Iterator[None]:
    """Turn what torch says when the memory is full into a sentence that helps."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        where = f"epoch {state.epoch + 1}, batch {state.batch + 1}"
        asked = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
        free = free_memory(state.tally.device)
        raise TrainingError(
            f"{where}: out of memory; a step with {config.batch_size} pictures of {config.image_size}x"
            f"{config.image_size} asked for {asked[1] if asked else 'more'} where {free / 1e9:.1f} GB are free; "
            f"try --batch-size {max(2, config.batch_size // 2)}, a smaller --image-size, or --precision bfloat16"
        ) from error


@contextmanager
def _locked(run: Path, world: World) -> Iterator[None]:
    """Hold the run folder for this process; the system lets go of it when the process ends, however it ends."""
    if not world.leads:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"--out {run}: another process is training in it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that receives the number of SIGINT or SIGTERM; the second signal ends the process at once.

    Only the main thread can receive signals: in another one the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
