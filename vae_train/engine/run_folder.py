"""The lock of a run, the signals that stop it, and advice on disk and memory errors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from filelock import FileLock, Timeout

from vae_train.config import TrainConfig
from vae_train.engine.device import free_memory
from vae_train.engine.distributed import DistributedContext
from vae_train.errors import TrainingError, UsageError

LOCK_FILE = ".lock"
SKIPPED_FILE = "skipped.txt"
GRACE = 3.0
"""Seconds after a first signal in which further ones do not end the process: terminals and launchers send two."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(Exception):
    """The run was stopped by a signal, after saving a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


@dataclass
class StopRequest:
    """The signal that asked a run to stop; 0 if there was none."""

    signal_number: int = 0


@contextmanager
def catch_signals(context: DistributedContext) -> Iterator[StopRequest]:
    """A request that SIGINT, SIGTERM or SIGHUP fills in; the loop looks at it after each step, saves and stops.

    The first signal is answered at once. Another one ends the process without saving, but only after `GRACE` seconds.
    A SIGHUP that is ignored, as under nohup, stays ignored. Only the main thread can receive signals: in another one
    the request stays empty.
    """
    request, first = StopRequest(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal first
        name = signal.Signals(number).name
        if not request.signal_number:
            request.signal_number, first = number, time.monotonic()
            if context.is_main:
                _say(f"{name}: saving a checkpoint after this step, then stopping")
        elif time.monotonic() - first > GRACE:
            if context.is_main:
                _say(f"{name} again: stopping without saving")
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    previous = {
        number: signal.signal(number, receive)
        for number in _SIGNALS
        if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """Print to stderr from a signal handler, in the middle of whatever the process was printing."""
    with contextlib.suppress(OSError):  # stderr is closed, or was the terminal that hung up
        os.write(2, f"\n{text}\n".encode())


@contextmanager
def lock_run(run: Path, context: DistributedContext) -> Iterator[None]:
    """Create the run's folder and hold it for this process; UsageError if another process trains in it.

    The system releases the lock when the process ends, however it ends. Where the disk has no locks, a warning says so.
    """
    if not context.is_main:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"--out {run}: another process is training in it") from None
    except (OSError, NotImplementedError) as error:
        print(
            f"warning: {run / LOCK_FILE}: no lock on this disk ({error}); going on without: "
            "start no second process with this folder",
            file=sys.stderr,
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_may_refuse(path: Path, warned: set[Path]) -> Iterator[None]:
    """Turn an OSError into one warning for `path`: for what a run can do without, such as figures."""
    try:
        yield
    except OSError as error:
        if path not in warned:
            print(f"warning: {path}: cannot be written ({error}); training goes on", file=sys.stderr)
        warned.add(path)


@contextmanager
def advise_on_memory(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Replace torch's error for a full memory by a TrainingError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        asked = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
        raise TrainingError(
            f"out of memory: a step with {config.batch_size} pictures of {config.image_size}x{config.image_size} "
            f"asked for {asked[1] if asked else 'more'} where {free_memory(device) / 1e9:.1f} GB are free; "
            f"try --batch-size {max(2, config.batch_size // 2)}, a smaller --image-size, or --precision bfloat16"
        ) from error
