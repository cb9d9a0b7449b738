"""How fast training is here: the write-up's plain loop, the same step with the data in memory, and ours, in one run.

Each loop has a process of its own, one after the other, so that its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vae_train.config import TrainConfig
from vae_train.data import load_faces
from vae_train.losses import kl_divergence, negative_elbo, squared_error
from vae_train.model import VAE
from vae_train.train import make_state, train_epoch

PICTURES = 2560
"""Faces that the loops go round."""

_WARM_UP = 2.0  # seconds that are not counted
_MATRIX = 2048


@dataclass(frozen=True)
class Row:
    """What one loop reached."""

    name: str
    images_per_second: float
    peak_megabytes: float


@dataclass(frozen=True)
class Ceiling:
    """What the machine and the model allow."""

    flop_per_image: float
    """Multiplications and additions of one forward and backward pass."""
    flop_per_second: float
    """Of a large float32 matrix product, measured."""


def benchmark(config: TrainConfig, device: str, seconds: float) -> tuple[list[Row], Ceiling]:
    """Measure the loops for `seconds` each, on the same faces of `config.data`."""
    faces = load_faces(config.data, config.image_size, config.avatars, config.seed)
    pixels = np.array(faces.pixels[:PICTURES])
    loops: list[Callable[..., Row]] = [plain_loop, resident_loop, our_loop]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index, face in enumerate(tqdm(pixels, desc="writing JPEGs for the plain loop", unit="img")):
            Image.fromarray(face.transpose(1, 2, 0)).save(Path(folder, f"{index:05d}.jpg"), quality=90)
        for loop in loops:
            print(f"measuring: {loop.__name__.replace('_', ' ')}", file=sys.stderr)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as process:
                rows.append(process.submit(loop, config, pixels, folder, device, seconds).result())
    return rows, ceiling(config, torch.device(device))


class JpegFolder(Dataset[Tensor]):
    """The write-up's data set: each picture is opened, decoded and turned into a float tensor when it is asked for."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(np.float32) / 255)


def plain_loop(config: TrainConfig, pixels: NDArray[np.uint8], folder: str, device: str, seconds: float) -> Row:
    """The write-up's loop: a DataLoader that decodes each picture anew, eager float32, the loss read at every step."""
    loader = DataLoader(JpegFolder(folder), config.batch_size, shuffle=True, drop_last=True)

    def batches() -> Iterator[Tensor]:
        while True:
            yield from loader

    return _measure("plain loop", batches(), config, device, seconds, read_loss=True)


def resident_loop(config: TrainConfig, pixels: NDArray[np.uint8], folder: str, device: str, seconds: float) -> Row:
    """The same eager step with the pictures in the device's memory already."""
    resident = torch.from_numpy(pixels).to(device)

    def batches() -> Iterator[Tensor]:
        while True:
            for chosen in torch.randperm(len(resident)).to(device).split(config.batch_size):
                if len(chosen) == config.batch_size:
                    yield resident[chosen].float() / 255

    return _measure("eager step, data resident", batches(), config, device, seconds, read_loss=False)


def our_loop(config: TrainConfig, pixels: NDArray[np.uint8], folder: str, device: str, seconds: float) -> Row:
    """`train.train_epoch`, as a run calls it, moving average included."""
    place = torch.device(device)
    resident = torch.from_numpy(pixels).to(place)
    state = make_state(config, place)
    images = len(pixels) // config.batch_size * config.batch_size

    def epoch() -> int:
        train_epoch(state, config, resident, tqdm(disable=True), [])
        state.epoch, state.batch = state.epoch + 1, 0
        state.sums.zero_()
        return images

    return _timed("ours", epoch, device, seconds)


def _measure(
    name: str, batches: Iterator[Tensor], config: TrainConfig, device: str, seconds: float, read_loss: bool
) -> Row:
    model = VAE(config.image_size, config.latent_dim).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)

    def step() -> int:
        image = next(batches).to(device)
        loss = _loss(model, image, config.latent_dim)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if read_loss:
            loss.item()
        return len(image)

    return _timed(name, step, device, seconds)


def _loss(model: nn.Module, image: Tensor, latent_dim: int) -> Tensor:
    reconstruction, mu, logvar = model(image, torch.randn(len(image), latent_dim, device=image.device))
    return negative_elbo(squared_error(reconstruction, image), kl_divergence(mu, logvar)).mean()


def _timed(name: str, work: Callable[[], int], device: str, seconds: float) -> Row:
    """Call `work`, which says how many images it did, for a while without and then with the clock."""

    def run(limit: float) -> float:
        images, started = 0, time.perf_counter()
        while time.perf_counter() - started < limit:
            images += work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return images / (time.perf_counter() - started)

    run(_WARM_UP)
    speed = run(seconds)
    if device.startswith("cuda"):
        return Row(name, speed, torch.cuda.max_memory_allocated() / 1e6)
    return Row(name, speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def ceiling(config: TrainConfig, device: torch.device) -> Ceiling:
    """Count the model's operations, and time a matrix product of 2048 x 2048."""
    model = VAE(config.image_size, config.latent_dim).to(device).train()
    with FlopCounterMode(display=False) as counter:
        image = torch.zeros(2, 3, config.image_size, config.image_size, device=device)
        _loss(model, image, config.latent_dim).backward()
    left, right = torch.randn(2, _MATRIX, _MATRIX, device=device)
    (left @ right)[0, 0].item()
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # reading one value waits for the device
        best = min(best, time.perf_counter() - started)
    return Ceiling(counter.get_total_flops() / 2, 2 * _MATRIX**3 / best)


def describe_machine(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The conditions of a measurement."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    side = config.image_size
    return {
        "preset": config.preset,
        "pictures": f"{side}x{side}",
        "batch": config.batch_size,
        "on": where,
        "torch": torch.__version__,
    }


def as_table(rows: list[Row], limit: Ceiling, about: dict[str, Any]) -> str:
    """The rows as a Markdown table under a line that says what was measured."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in about.items()),
        f"{limit.flop_per_image / 1e6:.1f} MFLOP an image; "
        f"float32 matrix product {limit.flop_per_second / 1e9:.0f} GFLOP/s",
        "",
        "| loop | images/s | ratio | peak memory, MB | share of the matrix product's FLOP/s |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        share = row.images_per_second * limit.flop_per_image / limit.flop_per_second
        ratio = row.images_per_second / rows[0].images_per_second
        lines.append(
            f"| {row.name} | {row.images_per_second:.0f} | {ratio:.2f} | {row.peak_megabytes:.0f} | {share:.1%} |"
        )
    return "\n".join(lines)
