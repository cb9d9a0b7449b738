"""The training loop, top to bottom.

The pictures stay on the device as uint8. Their order is a function of (seed, epoch) and the noise one of (seed, step),
so a run that was stopped anywhere goes on exactly as if it had not been: on a CPU with the same number of threads the
weights are the same to the bit.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from vae_runtime.images import Pixels
from vae_train import checkpoint
from vae_train.checkpoint import Checkpoint
from vae_train.config import CONFIG_FILE, TrainConfig
from vae_train.data import Faces, load_faces
from vae_train.errors import CheckpointError, DataError, TrainingError, UsageError
from vae_train.figures import FIGURES, draw_curve, draw_faces
from vae_train.losses import bits_per_dim, kl_divergence, kl_weight, negative_elbo, squared_error
from vae_train.metrics import active_units, psnr
from vae_train.model import VAE, reparameterize

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]

METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
UNREADABLE_FILE = "unreadable.txt"

# Measured on 2 cores (torch 2.13, fp32, classic, batch 128): 1.7 times the images a second of the default layout.
CHANNELS_LAST = torch.channels_last
_EVALUATION_BATCH = 500
_LOOK_EVERY = 0.5  # seconds between two looks at the running loss, each of which waits for the device
_DRAW_EVERY = 20.0  # seconds between two refreshes of the figures
_ORDER, _NOISE, _HELD_OUT = range(3)  # the streams of random numbers


@dataclass
class State:
    """Where a run stands."""

    model: VAE
    average: AveragedModel
    """Its moving average, statistics of BatchNorm included: this is what is evaluated, drawn and exported."""
    optimizer: torch.optim.Adam
    epoch: int
    """Epochs that are complete."""
    batch: int
    """Batches done of the epoch after them."""
    sums: Tensor
    """(2,) float64 on the device: reconstruction and KL, summed over this epoch's images so far."""
    seconds: float = 0.0
    """Time that this epoch's batches took so far."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


def train(config: TrainConfig, run: Path, device: torch.device, resume: bool = False) -> Faces:
    """Train until `config.epochs` are complete; return the faces it was trained on.

    Writes config.json, metrics.jsonl, checkpoints/ and figures/ into `run`. Ctrl-C and SIGTERM save a checkpoint
    and raise Interrupted. Raises UsageError when another process trains in `run`, TrainingError when the loss is no
    number any more, DataError and CheckpointError.
    """
    with _locked(run):
        faces = load_faces(config.data, config.image_size, config.avatars, config.seed)
        held_out = faces.held_out()
        _check_counts(config, faces, int((~held_out).sum()))
        _report_data(faces, held_out, run)
        data = {"name": faces.name, "count": int((~held_out).sum()), "sha256": faces.sha256}
        train_pixels = torch.from_numpy(faces.pixels[~held_out]).to(device)
        test_pixels = torch.from_numpy(faces.pixels[held_out]).to(device)
        state = make_state(config, device)
        history: list[dict[str, Any]] = []
        if resume:
            history = _restore(state, config, run, data)
        _write(run / CONFIG_FILE, config.to_json())

        batches = len(train_pixels) // config.batch_size
        shown = to_pixels(test_pixels[:64])
        last_drawn = -math.inf
        total, done = (epochs * batches * config.batch_size for epochs in (config.epochs, state.epoch))
        done += state.batch * config.batch_size
        with (
            tqdm(total=total, initial=done, unit="img", unit_scale=True, mininterval=_bar_interval()) as bar,
            _signals() as stop,
        ):
            while state.epoch < config.epochs:
                try:
                    train_epoch(state, config, train_pixels, bar, stop)
                except Interrupted:
                    _save(state, run, data)
                    raise
                record = _close_epoch(state, config, batches, test_pixels)
                history.append(record)
                _append_metrics(run, record)
                _save(state, run, data)
                bar.write(describe(record, config.epochs))
                if time.monotonic() - last_drawn > _DRAW_EVERY and state.epoch < config.epochs:
                    draw(averaged(state), shown, history, run, config)
                    last_drawn = time.monotonic()
        draw(averaged(state), shown, history, run, config)
        return faces


def train_epoch(state: State, config: TrainConfig, pixels: Tensor, bar: tqdm[Any], stop: list[int]) -> None:
    """The rest of one epoch. Raises Interrupted after the batch in which `stop` received a signal."""
    model, average, optimizer, device = state.model.train(), state.average, state.optimizer, pixels.device
    size = config.batch_size
    batches = len(pixels) // size
    order = torch.randperm(len(pixels), generator=stream(config.seed, _ORDER, state.epoch)).to(device)
    started, looked = time.monotonic(), time.monotonic()

    while state.batch < batches:
        chosen = order[state.batch * size : (state.batch + 1) * size]
        image = to_unit(pixels[chosen])
        step = state.epoch * batches + state.batch
        eps = torch.randn(size, config.latent_dim, generator=stream(config.seed, _NOISE, step, device), device=device)

        reconstruction, mu, logvar = model(image, eps)
        error, kl = squared_error(reconstruction, image), kl_divergence(mu, logvar)
        loss = negative_elbo(error, kl, config.beta * kl_weight(step, config.kl_warmup)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)

        state.sums += torch.stack([error.detach().sum(), kl.detach().sum()]).double()
        state.batch += 1
        bar.update(size)
        if time.monotonic() - looked > _LOOK_EVERY:
            looked = time.monotonic()
            shown = (state.sums[0] + config.beta * state.sums[1]).item() / (state.batch * size)
            _check_finite(shown, state)
            bar.set_postfix_str(f"epoch {state.epoch + 1}/{config.epochs}, loss {shown:.2f}", refresh=False)
        if stop:
            state.seconds += time.monotonic() - started
            raise Interrupted(stop[0])
    state.seconds += time.monotonic() - started


@torch.no_grad()
def evaluate_held_out(model: VAE, pixels: Tensor, config: TrainConfig) -> dict[str, float]:
    """The bound and its parts on held-out pictures (n, 3, S, S) uint8, with one fixed draw of z a picture.

    negative_elbo, reconstruction, kl: nats per image. bits_per_dim: see `losses`. psnr: dB, of decode(mu), the mean
    of the pictures' own. active_units: latents whose mu varies by more than 0.01 (Burda et al. 2016).
    """
    model.eval()
    noise = stream(config.seed, _HELD_OUT, 0, pixels.device)
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
        "negative_elbo": error + config.beta * kl,
        "reconstruction": error,
        "kl": kl,
        "bits_per_dim": bits_per_dim(error, kl, pixels[0].numel()),
        "psnr": torch.cat(psnrs).mean().item(),
        "active_units": active_units(torch.cat(mus)),
    }


def make_state(config: TrainConfig, device: torch.device) -> State:
    """A model with its first weights, decided by the seed, and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VAE(config.image_size, config.latent_dim)
    model.to(device=device, memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    return State(
        model, average_of(model, config.ema), optimizer, 0, 0, torch.zeros(2, dtype=torch.float64, device=device)
    )


def average_of(model: VAE, decay: float) -> AveragedModel:
    """A moving average of `model` (Polyak & Juditsky 1992, in the exponential form).

    The decay is min(decay, (1 + n) / (10 + n)) after n steps, so that the first weights are soon forgotten. At the
    write-up's constant learning rate the average is 1 to 2 nats better than the weights it is made of.
    """

    def mix(averages: Tensors, currents: Tensors, steps: Tensor | int) -> None:
        count = int(steps)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, weight)
        else:  # BatchNorm's counters of batches
            torch._foreach_copy_(averages, currents)

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(mix), use_buffers=True)


def stream(seed: int, purpose: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one purpose at one index: no state to save, nothing to get out of step."""
    mixed = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> 1))


def averaged(state: State) -> VAE:
    """The averaged network itself."""
    return cast(VAE, state.average.module)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, S, S) -> float32 in [0, 1], channels last"""
    return (pixels.float() / 255).contiguous(memory_format=CHANNELS_LAST)


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


def choose_device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:n"; UsageError if it was asked for by name and is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        print("training on the CPU: torch sees no CUDA device", file=sys.stderr)
        return torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def describe(record: dict[str, Any], epochs: int) -> str:
    """One line about one epoch."""
    return (
        f"epoch {record['epoch']}/{epochs}  train {record['train_negative_elbo']:.2f}  "
        f"held-out {record['held_out_negative_elbo']:.2f} nats (reconstruction {record['held_out_reconstruction']:.2f} "
        f"+ KL {record['held_out_kl']:.2f}), {record['held_out_bits_per_dim']:.3f} bits/dim, "
        f"PSNR {record['held_out_psnr']:.2f} dB, {record['images_per_second']:.0f} images/s"
    )


# ---- what a run keeps on the disk -----------------------------------------------------------------------------------


def _close_epoch(state: State, config: TrainConfig, batches: int, test_pixels: Tensor) -> dict[str, Any]:
    """End the epoch in `state` and return its line for metrics.jsonl."""
    images = batches * config.batch_size
    error, kl = (state.sums / images).tolist()
    _check_finite(error + kl, state)
    speed = images / max(state.seconds, 1e-9)
    state.epoch, state.batch, state.seconds = state.epoch + 1, 0, 0.0
    state.sums.zero_()
    held_out = evaluate_held_out(averaged(state), test_pixels, config)
    return {
        "epoch": state.epoch,
        "step": state.epoch * batches,
        "train_negative_elbo": error + config.beta * kl,
        "train_reconstruction": error,
        "train_kl": kl,
        "train_bits_per_dim": bits_per_dim(error, kl, test_pixels[0].numel()),
        **{f"held_out_{name}": value for name, value in held_out.items()},
        "images_per_second": round(speed, 1),
    }


def _save(state: State, run: Path, data: dict[str, Any]) -> None:
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in averaged(state).state_dict().items()}
    names = [name for name, _ in state.model.named_parameters()]
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{names[index]}.{key}": value for key, value in moments.items()}
    tensors["sums"] = state.sums
    step = int(state.average.n_averaged)
    position = {"epoch": state.epoch, "batch": state.batch, "seconds": state.seconds, "data": data}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise TrainingError(f"step {step}: weights that are no numbers; the last good checkpoint stays in {run}")
    checkpoint.save(run / CHECKPOINTS, Checkpoint(step, position, tensors))


def load_weights(model: VAE, saved: Checkpoint, kind: Literal["model", "average"] = "average") -> None:
    """Put weights of a checkpoint into `model`; CheckpointError if they are those of another network.

    kind: the averaged weights, or the ones that were being trained.
    """
    weights = {name[len(kind) + 1 :]: value for name, value in saved.tensors.items() if name.startswith(f"{kind}.")}
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != wanted:
        raise CheckpointError("the checkpoint holds the weights of another network than config.json describes")
    model.load_state_dict(weights)


def _restore(state: State, config: TrainConfig, run: Path, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Put the newest good checkpoint into `state`, and return the epochs logged up to it."""
    saved, damaged = checkpoint.load_latest(run / CHECKPOINTS)
    for sentence in damaged:
        print(f"warning: {sentence}; going back to the one before", file=sys.stderr)
    if saved is None:
        print(f"no checkpoint in {run} yet, starting from the first epoch", file=sys.stderr)
        _rewrite_metrics(run, [])
        return []
    if saved.state["data"] != data:
        raise DataError(f"--resume: the pictures of {config.data} are not the ones that {run} was trained on")
    load_weights(state.model, saved, "model")
    load_weights(averaged(state), saved)
    state.average.n_averaged.fill_(saved.step)
    moments: dict[int, dict[str, Tensor]] = {}
    for index, (name, _) in enumerate(state.model.named_parameters()):
        prefix = f"optimizer.{name}."
        moments[index] = {
            key.removeprefix(prefix): value.contiguous(memory_format=CHANNELS_LAST) if value.ndim == 4 else value
            for key, value in saved.tensors.items()
            if key.startswith(prefix)
        }
    state.optimizer.load_state_dict({"state": moments, "param_groups": state.optimizer.state_dict()["param_groups"]})
    state.epoch, state.batch = int(saved.state["epoch"]), int(saved.state["batch"])
    state.seconds = float(saved.state["seconds"])
    state.sums.copy_(saved.tensors["sums"])
    history = [record for record in read_metrics(run) if record["epoch"] <= state.epoch]
    _rewrite_metrics(run, history)
    return history


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that a kill cut off is left out."""
    records = []
    path = run / METRICS_FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _append_metrics(run: Path, record: dict[str, Any]) -> None:
    with (run / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _rewrite_metrics(run: Path, records: list[dict[str, Any]]) -> None:
    _write(run / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in records))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _check_counts(config: TrainConfig, faces: Faces, training: int) -> None:
    if training < config.batch_size:
        raise DataError(
            f"{config.data}: {training} pictures to train on ({len(faces)} in all), fewer than one batch of "
            f"{config.batch_size}; give more pictures or a smaller --batch-size"
        )


def _report_data(faces: Faces, held_out: np.ndarray[Any, Any], run: Path) -> None:
    print(
        f"{len(faces)} faces of {faces.name}: {int((~held_out).sum())} to train on, {int(held_out.sum())} held out; "
        f"{faces.duplicates} duplicates, {len(faces.unreadable)} unreadable, {faces.stray} other files",
        file=sys.stderr,
    )
    if faces.unreadable:
        print(f"the unreadable ones are listed in {run / UNREADABLE_FILE}", file=sys.stderr)
        (run / UNREADABLE_FILE).write_text("\n".join(faces.unreadable) + "\n", encoding="utf-8")


def _check_finite(loss: float, state: State) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"epoch {state.epoch + 1}, batch {state.batch}: the loss is {loss}; the last checkpoint is good, "
            "try a smaller --learning-rate"
        )


def _bar_interval() -> float:
    """Seconds between two updates of the bar: rare where it goes into a log file."""
    return 0.2 if sys.stderr.isatty() else 10.0


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold the run folder for this process; the system lets go of it when the process ends, however it ends."""
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
