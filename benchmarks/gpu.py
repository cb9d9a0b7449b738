"""One command for a day with a GPU: everything that was measured on CPUs only, step by step, each result kept at once.

A step that fails is named in the report and the others run, so that time on a rented machine is never lost.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import inference, parity, runtimes, training
from vae_runtime import VAE
from vae_runtime.cli.arguments import EXIT_INTERRUPTED
from vae_runtime.cli.diagnostics import environment
from vae_runtime.files import write_atomically
from vae_runtime.ort.devices import usable_cores
from vae_train.adversarial.config import RefineConfig
from vae_train.config import make_config
from vae_train.engine import checkpoint
from vae_train.engine.device import describe_device
from vae_train.engine.state import CHECKPOINTS
from vae_train.export.export import export, source_of
from vae_train.model.presets import PRESETS

BATCHES = (1, 8, 64, 256, 1024)


@dataclass(frozen=True)
class Settings:
    """What to measure, how long, and where the results go."""

    model: Path
    """An exported model."""
    data: str
    """A source of pictures, as for training."""
    device: torch.device
    seconds: float
    """For each loop of training and each row of inference."""
    out: Path
    batches: tuple[int, ...] = BATCHES
    minutes: float = 10.0
    """Time limit of the second stage, which saves what it has when it is over."""
    images: int = 1_000_000
    """Faces that the second stage draws at most."""


def run(settings: Settings, steps: dict[str, Callable[[Settings], str]] | None = None) -> list[str]:
    """Run each step and write OUT/STEP.md, OUT/report.md and what the steps write themselves; the steps that failed.

    steps: name -> what to do, which returns its section of the report as Markdown.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    machine = environment() | {"torch": torch.__version__, "device": describe_device(settings.device)}
    sections = ["# Measurements", "\n".join(f"- {name}: {value}" for name, value in machine.items())]
    failed = []
    for name, step in (steps or STEPS).items():
        print(f"{name} ...", flush=True)
        try:
            text = step(settings)
        except Exception as error:  # whatever it is, the other steps are worth their time
            failed.append(name)
            text = f"failed: {error}\n\n```\n{traceback.format_exc()}```"
        sections.append(f"## {name}\n\n{text}")
        write_atomically(settings.out / "report.md", "\n\n".join(sections) + "\n")
    return failed


def measure_parity(settings: Settings) -> str:
    """Both graphs on the device, in all ways to run them, compared with their exact values."""
    with VAE.load(settings.model, device="cpu") as vae:
        rows, missing = parity.measure(vae, settings.model, runtimes.for_device(settings.device.type), usable_cores())
        _save(settings, "parity", parity.as_json(rows, missing, vae, settings.model))
    failures = parity.failures(rows)
    verdict = f"{len(failures)} of {len(rows)} rows fail." if failures else "All rows pass."
    return f"{parity.as_markdown(rows)}\n\n{verdict}{_missing(missing)}"


def measure_inference(settings: Settings) -> str:
    """Latency and throughput of the graphs on the device."""
    others = [runtime for runtime in runtimes.for_device(settings.device.type) if runtime.name != inference.BASELINE]
    with VAE.load(settings.model, device=settings.device.type) as vae:
        rows, missing = inference.measure(
            vae, settings.model, others, settings.seconds, usable_cores(), settings.batches
        )
    _save(settings, "inference", [asdict(row) for row in rows])
    return inference.as_table(rows) + _missing(missing)


def measure_training(settings: Settings) -> str:
    """Throughput of training for each preset, beside a plain PyTorch loop."""
    tables, results = [], {}
    for preset in PRESETS:
        config = make_config({"data": (settings.data,), "preset": preset, "sharpness": 0.0})
        rows, ceiling = training.measure(config, str(settings.device), settings.seconds)
        results[preset] = {"rows": [asdict(row) for row in rows], "ceiling": asdict(ceiling)}
        tables.append(training.as_table(rows, ceiling, training.describe_machine(config, settings.device)))
        _save(settings, "training", results)
    return "\n\n".join(tables)


def refine(settings: Settings) -> str:
    """The second stage of training, `python -m vae_train refine`, until it ends or its time is over."""
    run = settings.out / "refined"
    command = [*REFINE, str(settings.model), "--data", settings.data, "--images", str(settings.images)]
    command += ["--out", str(run), "--device", str(settings.device)]
    with (settings.out / "refine.log").open("wb") as log:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(60 * settings.minutes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
        taken = time.monotonic() - start
    if process.returncode not in (0, EXIT_INTERRUPTED):
        raise RuntimeError(f"status {process.returncode}, see {settings.out / 'refine.log'}")
    saved, _ = checkpoint.load_latest(run / CHECKPOINTS)
    if saved is None:
        raise RuntimeError(f"no checkpoint after {taken:.0f} s, see {settings.out / 'refine.log'}")
    images = saved.step * RefineConfig.load(run).batch_size
    exported = export(run, settings.out / "model", faces=source_of(run))
    return (
        f"{images:,} new faces in {taken / 60:.1f} minutes, start and first draws included; the run is {run}, "
        f"the model {settings.out / 'model'} (id {exported.model_id})"
    )


REFINE = [sys.executable, "-m", "vae_train", "refine"]
STEPS: dict[str, Callable[[Settings], str]] = {
    "parity": measure_parity,
    "inference": measure_inference,
    "training": measure_training,
    "refine": refine,
}
"""Name -> step, in the order in which they run: the quick ones first."""


def _save(settings: Settings, name: str, results: Any) -> None:
    write_atomically(settings.out / f"{name}.json", json.dumps(results, indent=2) + "\n")


def _missing(missing: dict[str, str]) -> str:
    return "".join(f"\n\nnot measured: {name} ({reason})" for name, reason in missing.items())
