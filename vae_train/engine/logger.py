"""The metrics of a run: metrics.jsonl, and events for TensorBoard if asked for.

A log that cannot be written does not stop the training: it warns once, and the missing lines are written as soon as
the disk accepts them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"
EVENTS = "events"


class Logger:
    """The records of a run, one per epoch."""

    def __init__(self, run: Path, records: list[dict[str, Any]], tensorboard: bool) -> None:
        """records: earlier ones to keep; other lines of the file are dropped."""
        self.path, self.records = run / METRICS_FILE, records
        self._complete, self._warned = False, False  # whether the file holds all records; whether a warning was given
        self._events = _events(run / EVENTS, len(records)) if tensorboard else None
        if self.path.exists():
            self._write()

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record and write it; warn once if the disk refuses."""
        self.records.append(record)
        self._write()
        if self._events is not None:
            with self._warn_once():
                for name, value in record.items():
                    if name != "epoch" and not isinstance(value, str):
                        self._events.add_scalar(tag(name), value, record["epoch"])
                self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _write(self) -> None:
        """Append the last record, or rewrite the file if it may be incomplete."""
        with self._warn_once():
            if self._complete:
                self._complete = False
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(self.records[-1]))
            else:
                temporary = self.path.with_name(self.path.name + ".tmp")
                temporary.write_text("".join(map(_line, self.records)), encoding="utf-8")
                temporary.replace(self.path)
            self._complete = True

    @contextmanager
    def _warn_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                print(
                    f"warning: {self.path.parent}: the metrics cannot be written ({error}); training goes on",
                    file=sys.stderr,
                )
            self._warned = True


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, one an epoch.

    Lines that are not such records are left out, with a warning; the last one without, as a kill may have cut it off.
    """
    path = run / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    records, invalid = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # UnicodeDecodeError is one
            record = None
        if isinstance(record, dict) and isinstance(record.get("epoch"), int):
            records.append(record)
        elif number < len(lines):
            invalid.append(str(number))
    if invalid:
        print(f"warning: {path}: invalid line {', '.join(invalid[:5])}; left out", file=sys.stderr)
    return records


def tag(name: str) -> str:
    """held_out_psnr -> held_out/psnr: TensorBoard groups by what is before the slash."""
    part = next((part for part in ("train", "held_out") if name.startswith(f"{part}_")), None)
    return f"{part}/{name[len(part) + 1 :]}" if part else name


def _events(folder: Path, epochs: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # After a resume, the events of epochs that will be run again are not shown.
    return SummaryWriter(str(folder), purge_step=epochs + 1)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def make_bar(images: int, done: int = 0, shown: bool = True) -> tqdm[Any]:
    """The progress bar of a run, in images; rarely updated where it goes into a log file."""
    interactive = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        total=images,
        initial=done,
        unit="img",
        unit_scale=True,
        mininterval=0.2 if interactive else 10.0,
        disable=sys.stderr is None or not shown,
    )
