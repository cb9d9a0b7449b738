"""How fast the two graphs run here: `vae_runtime` beside bare ONNX Runtime, torch, OpenVINO and OpenCV in one process.

All take the same float32 input and use the same cores; `vae_runtime` also converts uint8 pixels to floats and back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference import flop, parse
from benchmarks.runtimes import GraphFile, LocalRuntime, Run, first_line
from vae_runtime import VAE
from vae_runtime.config import graph_files
from vae_runtime.images import to_unit
from vae_train.evaluation.timing import latencies

BATCHES = (1, 8, 64, 256)
BASELINE = "vae_runtime"

_TOLERANCE = 1e-3  # of pixels in [0, 1] and of codes: another answer is not worth a time
_MATRIX = 2048
_MATRIX_PRODUCT = f"""
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
    """One runtime at one batch size."""

    verb: str
    """"encode" or "decode"."""
    batch: int
    threads: int
    """CPU cores of each runtime."""
    name: str
    p50: float
    """Median latency of a call, in milliseconds."""
    p95: float
    images_per_second: float
    ratio: float
    """Its images a second over those of `vae_runtime`."""
    share: float | None
    """Its FLOP/s over those of a large float32 matrix product on as many cores; None on a GPU."""


def measure(
    vae: VAE, folder: Path, runtimes: Sequence[LocalRuntime], seconds: float, threads: int, batches: Sequence[int]
) -> tuple[list[Row], dict[str, str]]:
    """Rows for encode and decode at each batch size, and by name, why a runtime is missing.

    folder: the model's. runtimes: what `vae` is raced against. seconds: for each row. threads: CPU cores of the
    others, the same as those of `vae`.
    """
    rows: list[Row] = []
    missing: dict[str, str] = {}
    product = matrix_product(threads) if vae.device == "cpu" else None
    rng = np.random.default_rng(0)
    names = graph_files(vae.variant), graph_files(None)
    for verb, part, file, plain in zip(("encode", "decode"), (vae.encoder, vae.decoder), *names, strict=True):
        graph = GraphFile((folder / file).read_bytes(), part.inputs, part.outputs, folder)
        opened, absent = _open(graph, runtimes, threads)
        missing |= {f"{name}, {verb}": reason for name, reason in absent.items()}
        (shape,) = part.inputs.values()
        cost = flop(parse((folder / plain).read_bytes()), shape)  # a variant does the same sums in other numbers
        for batch in batches:
            pixels = rng.integers(0, 256, (batch, vae.image_size, vae.image_size, 3), np.uint8)
            z = rng.standard_normal((batch, vae.latent_dim), np.float32)
            values, baseline = (
                (to_unit(pixels), partial(vae.encode, pixels)) if verb == "encode" else (z, partial(vae.decode, z))
            )
            calls, absent = _agreeing(opened, values, part.run(values)[0])
            missing |= {f"{name}, {verb}, batch {batch}": reason for name, reason in absent.items()}
            times = latencies({BASELINE: baseline} | calls, seconds)
            rows += _rows(times, verb, batch, threads, cost * batch / product if product else None)
    return rows, missing


def _open(graph: GraphFile, runtimes: Sequence[LocalRuntime], threads: int) -> tuple[dict[str, Run], dict[str, str]]:
    """A graph in each runtime, by name, and why a runtime is missing."""
    opened: dict[str, Run] = {}
    missing: dict[str, str] = {}
    for runtime in runtimes:
        try:
            opened[runtime.name] = runtime.open(graph, threads)
        except Exception as error:  # not installed, or it cannot run this graph
            missing[runtime.name] = first_line(error)
    return opened, missing


def _agreeing(
    opened: Mapping[str, Run], values: NDArray[np.float32], expected: NDArray[np.float32]
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """A call of each runtime whose outputs are the expected ones, by name, and why a runtime has none."""
    calls: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    for name, run in opened.items():
        try:
            found = np.asarray(run(values)[0])
            if found.shape != expected.shape or np.abs(found - expected).max() > _TOLERANCE:
                raise ValueError("its outputs differ")
            calls[name] = partial(run, values)
        except Exception as error:
            missing[name] = first_line(error)
    return calls, missing


def _rows(
    times: Mapping[str, NDArray[np.float64]], verb: str, batch: int, threads: int, ideal: float | None
) -> Iterator[Row]:
    """A row for each runtime. times: seconds of its calls. ideal: seconds at the speed of a matrix product."""
    baseline = float(np.median(times[BASELINE]))
    for name, taken in times.items():
        p50, p95 = float(np.median(taken)), float(np.percentile(taken, 95))
        share = ideal / p50 if ideal else None
        yield Row(verb, batch, threads, name, 1000 * p50, 1000 * p95, batch / p50, baseline / p50, share)


def matrix_product(threads: int) -> float:
    """FLOP/s of a large float32 matrix product by NumPy on so many cores: the most that a CPU gives in practice.

    In a process of its own, because NumPy's library reads its number of threads when it is loaded.
    """
    environment = os.environ | dict.fromkeys(_BLAS_THREADS, str(threads))
    command = [sys.executable, "-c", _MATRIX_PRODUCT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def as_table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | batch | threads | | p50 ms | p95 ms | images/s | ratio to vae_runtime | share of a matrix product |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "-" if row.share is None else f"{row.share:.0%}"
        lines.append(
            f"| {row.verb} | {row.batch} | {row.threads} | {row.name} | {row.p50:.3f} | {row.p95:.3f} "
            f"| {row.images_per_second:.0f} | {row.ratio:.2f} | {share} |"
        )
    return "\n".join(lines)
