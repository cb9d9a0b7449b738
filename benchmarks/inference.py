"""How fast the two graphs run here: our API beside a bare ONNX Runtime, torch, OpenVINO and OpenCV, in one process.

The others (`benchmarks.runtimes`) are opened only if they are installed, and only by this command. All take the same
float32 input and use the same cores; ours also turns uint8 pixels into floats and back. The rounds of all contenders
alternate, so that what else the machine does meets each of them alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference import flop, parse
from benchmarks.runtimes import GraphFile, Local, Run, first_line
from vae_runtime.config import graph_files
from vae_runtime.errors import RuntimeMissingError
from vae_runtime.images import to_unit
from vae_runtime.model import VAE

BATCHES = (1, 8, 64, 256)
OURS = "vae_runtime"

_ROUNDS = 10
_FEWEST_ROUNDS = 3
_WARM = 3
_AGREE = 1e-3  # largest difference between two contenders' pixels in [0, 1], and between their codes
_MATRIX = 2048
_PRODUCT = f"""
import time
import numpy as np
left, right = np.random.default_rng(0).random((2, {_MATRIX}, {_MATRIX}), np.float32)
times = []
for _ in range(8):
    start = time.perf_counter()
    left @ right
    times.append(time.perf_counter() - start)
print(2 * {_MATRIX}**3 / min(times))
"""
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Row:
    """One contender at one batch size."""

    verb: str
    """"encode" or "decode"."""
    batch: int
    threads: int
    """CPU cores of each contender."""
    name: str
    p50: float
    """Median latency of a call, in milliseconds."""
    p95: float
    images_per_second: float
    ratio: float
    """Its images a second by ours: above 1 it is faster than we are."""
    share: float | None
    """Its arithmetic by that of a large float32 matrix product on as many cores; None on a GPU or without onnx."""


def measure(
    vae: VAE, folder: Path, others: Sequence[Local], seconds: float, threads: int, batches: Sequence[int] = BATCHES
) -> tuple[list[Row], dict[str, str]]:
    """Rows for encode and decode at each batch size, and by name, why a contender is missing.

    folder: the model's. others: who it is measured beside. seconds: for each row. threads: CPU cores of the others,
    which should be ours too.
    """
    rows: list[Row] = []
    missing: dict[str, str] = {}
    rng = np.random.default_rng(0)
    size = vae.image_size
    product = matrix_product(threads) if vae.device == "cpu" else None
    names = zip(graph_files(vae.variant), graph_files(None), strict=True)
    parts = zip(("encode", "decode"), (vae.encoder, vae.decoder), names, strict=True)
    for verb, part, (file, plain) in parts:
        graph = GraphFile((folder / file).read_bytes(), part.inputs, part.outputs)
        cost = _cost((folder / plain).read_bytes(), part.inputs)  # a variant does the same sums in other numbers
        opened: dict[str, Run] = {}
        for peer in others:
            try:
                opened[peer.name] = peer.open(graph, threads)
            except Exception as error:  # not installed, or it cannot run this graph: both are an answer
                missing[f"{peer.name}, {verb}"] = first_line(error)
        for batch in batches:
            pixels = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
            z = rng.standard_normal((batch, vae.latent_dim), np.float32)
            entry = to_unit(pixels) if verb == "encode" else z
            expected = part.run(entry)[0]
            calls: dict[str, Callable[[], Any]] = {
                OURS: partial(vae.encode, pixels) if verb == "encode" else partial(vae.decode, z)
            }
            for name, run in opened.items():
                try:
                    found = np.asarray(run(entry)[0])
                    if found.shape != expected.shape or np.abs(found - expected).max() > _AGREE:
                        raise ValueError("its answer is another")
                    calls[name] = partial(run, entry)
                except Exception as error:
                    missing[f"{name}, {verb}, batch {batch}"] = first_line(error)
            times = race(calls, seconds)
            ours = float(np.median(times[OURS]))
            for name, taken in times.items():
                middle = float(np.median(taken))
                share = cost * batch / middle / product if cost and product else None
                late = float(np.percentile(taken, 95))
                rows.append(
                    Row(verb, batch, threads, name, 1000 * middle, 1000 * late, batch / middle, ours / middle, share)
                )
    return rows, missing


def matrix_product(threads: int) -> float:
    """FLOP/s of a large float32 matrix product by NumPy on so many cores: what a CPU gives at best.

    In a process of its own: the threads of NumPy's library are set before it is loaded.
    """
    environment = os.environ | dict.fromkeys(_BLAS_THREADS, str(threads))
    done = subprocess.run([sys.executable, "-c", _PRODUCT], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _cost(data: bytes, inputs: dict[str, tuple[int, ...]]) -> int:
    """FLOP of a graph for one picture; 0 where the package onnx, which reads the graph, is not installed."""
    ((_, shape),) = inputs.items()
    try:
        return flop(parse(data), shape)
    except RuntimeMissingError:
        return 0


def race(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, NDArray[np.float64]]:
    """Latencies in seconds of each call, measured in turns, which are fewer and longer where one is slow."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    slowest = 0.0
    for call in calls.values():
        for _ in range(_WARM):
            start = time.perf_counter()
            call()
        slowest = max(slowest, time.perf_counter() - start)
    rounds = min(_ROUNDS, max(_FEWEST_ROUNDS, int(seconds / slowest)))
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # wakes its threads, and brings its weights back into the cache
            end = time.perf_counter() + seconds / rounds
            while (start := time.perf_counter()) < end:
                call()
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | batch | threads | | p50 ms | p95 ms | images/s | ratio to ours | share of a matrix product |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "-" if row.share is None else f"{row.share:.0%}"
        lines.append(
            f"| {row.verb} | {row.batch} | {row.threads} | {row.name} | {row.p50:.3f} | {row.p95:.3f} "
            f"| {row.images_per_second:.0f} | {row.ratio:.2f} | {share} |"
        )
    return "\n".join(lines)
