"""What a run says of itself: metrics.jsonl, always, and events for TensorBoard, if asked.

A log that cannot be written does not stop the training: it warns once, and the lines that are missing follow when the
disk takes them again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
EVENTS = "events"


class Log:
    """The records of a run, one an epoch."""

    def __init__(self, run: Path, records: list[dict[str, Any]], tensorboard: bool) -> None:
        """records: those that the run keeps from before; what else the file holds is dropped."""
        self.path, self.records = run / METRICS_FILE, records
        self._complete, self._warned = False, False  # whether the file holds all records; whether it was complained of
        self._events = _events(run / EVENTS, len(records)) if tensorboard else None
        if self.path.exists():
            self._write()

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record and write it; of what the disk says against it, warn once."""
        self.records.append(record)
        self._write()
        if self._events is not None:
            with self._forgiving():
                for name, value in record.items():
                    if name != "epoch" and not isinstance(value, str):
                        self._events.add_scalar(tag(name), value, record["epoch"])
                self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _write(self) -> None:
        """Append the last record, or write all anew where the file may lack some."""
        with self._forgiving():
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
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                print(f"warning: {self.path.parent}: the log cannot be written ({error}); going on", file=sys.stderr)
            self._warned = True


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


def tag(name: str) -> str:
    """held_out_psnr -> held_out/psnr: TensorBoard groups by what stands before the stroke."""
    part = next((part for part in ("train", "held_out") if name.startswith(f"{part}_")), None)
    return f"{part}/{name[len(part) + 1 :]}" if part else name


def _events(folder: Path, epochs: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # After a resume, the events of epochs that will be run again are not shown.
    return SummaryWriter(str(folder), purge_step=epochs + 1)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
