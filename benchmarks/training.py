"""How fast training is here: a plain PyTorch loop, the same step with the data in memory, and `vae_train`, in one run.

Each loop runs in its own process, one after the other, so that its peak memory is its own.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vae_train.config import TrainConfig
from vae_train.data.faces import load_faces
from vae_train.engine.device import choose_precision, describe_device
from vae_train.engine.distributed import SINGLE_PROCESS
from vae_train.engine.loader import Loader
from vae_train.engine.run_folder import StopRequest
from vae_train.engine.state import make_state
from vae_train.engine.step import make_step, objective
from vae_train.engine.train import train_epoch
from vae_train.model.losses import kl_per_latent, squared_error
from vae_train.model.networks import VAE

PICTURES = 2560
"""Faces that the loops cycle through."""

_WARM_UP = 2.0  # seconds that are not counted
_MATRIX = 2048
_COPY = 2**28  # bytes


@dataclass(frozen=True)
class Row:
    """The result of one loop."""

    name: str
    precision: str
    images_per_second: float
    peak_megabytes: float


@dataclass(frozen=True)
class Ceiling:
    """What the model costs and the machine gives."""

    flop_per_image: float
    """Multiplications and additions of one forward and backward pass."""
    bytes_per_image: float
    """Read and written by its operations one by one in float32, without what fusing and bfloat16 save."""
    flop_per_second: dict[str, float]
    """Of a large matrix product, measured, by precision."""
    bytes_per_second: float
    """Read and written by a large copy, measured."""


def measure(config: TrainConfig, device: str, seconds: float) -> tuple[list[Row], Ceiling]:
    """Measure the loops for `seconds` each, on the same faces of `config.data`."""
    faces = load_faces(config.data, config.image_size, config.avatars, config.seed)
    pixels = np.array(faces.pixels[:PICTURES])
    fast = dataclasses.replace(config, precision=choose_precision(config.precision, torch.device(device)))
    plain = dataclasses.replace(config, precision="float32")
    loops: list[tuple[Callable[..., Row], TrainConfig]] = [
        (plain_loop, plain),
        (resident_loop, plain),
        (engine_loop, plain),
        (engine_loop, fast),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index, face in enumerate(tqdm(pixels, desc="writing JPEGs for the plain loop", unit="img")):
            Image.fromarray(face.transpose(1, 2, 0)).save(Path(folder, f"{index:05d}.jpg"), quality=90)
        for loop, settings in loops if fast != plain else loops[:-1]:
            print(f"measuring: {loop.__name__.replace('_', ' ')}, {settings.precision}", file=sys.stderr)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as process:
                rows.append(process.submit(loop, settings, pixels, folder, device, seconds).result())
    return rows, ceiling(config, torch.device(device))


class JpegFolder(Dataset[Tensor]):
    """A plain data set: each picture is opened, decoded and converted when it is asked for."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(np.float32) / 255)


def plain_loop(config: TrainConfig, pixels: NDArray[np.uint8], folder: str, device: str, seconds: float) -> Row:
    """A plain loop: a DataLoader that decodes each picture anew, eager float32, the loss read at every step."""
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


def engine_loop(config: TrainConfig, pixels: NDArray[np.uint8], folder: str, device: str, seconds: float) -> Row:
    """`train.train_epoch`, as a run calls it, moving average included."""
    place = torch.device(device)
    loader = Loader(pixels, np.arange(len(pixels)), config, place, SINGLE_PROCESS)
    state = make_state(config, place)
    step = make_step(state, config, loader)
    images = loader.batches * config.batch_size

    def epoch() -> int:
        train_epoch(state, config, loader, step, tqdm(disable=True), StopRequest())
        state.epoch, state.batch = 0, 0
        state.sums.zero_()
        return images

    return _timed("vae_train", epoch, config, device, seconds)


def _measure(
    name: str, batches: Iterator[Tensor], config: TrainConfig, device: str, seconds: float, read_loss: bool
) -> Row:
    model = VAE.from_config(config).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)

    def step() -> int:
        image = next(batches).to(device)
        loss = _loss(model, image, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if read_loss:
            loss.item()
        return len(image)

    return _timed(name, step, config, device, seconds)


def _loss(model: nn.Module, image: Tensor, config: TrainConfig) -> Tensor:
    reconstruction, mu, logvar = model(image, torch.randn(len(image), config.latent_dim, device=image.device))
    error, kl = squared_error(reconstruction, image), kl_per_latent(mu, logvar)
    return objective(error, kl, torch.tensor(config.beta, device=image.device), config, image[0].numel())


def _timed(name: str, work: Callable[[], int], config: TrainConfig, device: str, seconds: float) -> Row:
    """Call `work`, which returns its number of images, to warm up and then against the clock."""

    def run(limit: float) -> float:
        images, started = 0, time.perf_counter()
        while time.perf_counter() - started < limit:
            images += work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return images / (time.perf_counter() - started)

    run(_WARM_UP)
    speed = run(seconds)
    peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else _peak_memory()
    return Row(name, config.precision, speed, peak / 1e6)


def _peak_memory() -> int:
    """The most bytes that this process has held so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def ceiling(config: TrainConfig, device: torch.device) -> Ceiling:
    """Count what a step costs, and measure what the machine gives: a large matrix product and a large copy."""
    model = VAE.from_config(config).to(device).train()
    image = torch.zeros(2, 3, config.image_size, config.image_size, device=device)
    with FlopCounterMode(display=False) as flop, _ByteCounter() as counter:
        _loss(model, image, config).backward()
    speeds = {}
    for precision in ("float32", "bfloat16"):
        left, right = torch.randn(2, _MATRIX, _MATRIX, device=device).to(getattr(torch, precision))
        speeds[precision] = 2 * _MATRIX**3 / _best_time(lambda: left @ right)  # noqa: B023
    source, target = torch.zeros(2, _COPY // 4, device=device)
    copied = 2 * _COPY / _best_time(lambda: target.copy_(source))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return Ceiling(flop.get_total_flops() / 2, (counter.bytes - weights) / 2, speeds, copied)


class _ByteCounter(TorchDispatchMode):
    """Sums the bytes that operations read and write, each one by itself, without views."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [item for item in tree_leaves((args, kwargs, result)) if isinstance(item, Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def _best_time(work: Callable[[], Tensor]) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(8):
        started = time.perf_counter()
        work().flatten()[0].item()  # reading one value waits for the device
        times.append(time.perf_counter() - started)
    return min(times)


def describe_machine(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The conditions of a measurement."""
    side = config.image_size
    return {
        "preset": config.preset,
        "pictures": f"{side}x{side}",
        "batch": config.batch_size,
        "on": describe_device(device),
        "torch": torch.__version__,
    }


def as_table(rows: list[Row], limit: Ceiling, about: dict[str, Any]) -> str:
    """The rows as a Markdown table under lines that say what was measured."""
    products = ", ".join(f"{precision} {speed / 1e9:.0f}" for precision, speed in limit.flop_per_second.items())
    lines = [
        ", ".join(f"{key} {value}" for key, value in about.items()),
        f"an image costs {limit.flop_per_image / 1e6:.1f} MFLOP and, operation by operation in float32, "
        f"{limit.bytes_per_image / 1e6:.1f} MB of memory traffic; measured here: "
        f"matrix product, GFLOP/s: {products}; copy {limit.bytes_per_second / 1e9:.1f} GB/s",
        "",
        "| loop | images/s | ratio | peak memory, MB | share of the matrix product | of the copy |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        product = row.images_per_second * limit.flop_per_image / limit.flop_per_second[row.precision]
        copy = row.images_per_second * limit.bytes_per_image / limit.bytes_per_second
        ratio = row.images_per_second / rows[0].images_per_second
        lines.append(
            f"| {row.name}, {row.precision} | {row.images_per_second:.0f} | {ratio:.2f} | {row.peak_megabytes:.0f} "
            f"| {product:.1%} | {copy:.1%} |"
        )
    return "\n".join(lines)
