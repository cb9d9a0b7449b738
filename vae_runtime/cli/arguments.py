"""What the command lines of this project share: one-sentence errors, exit status 2, and types with a range."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import NoReturn, TypeVar

from vae_runtime.config import VARIANTS
from vae_runtime.errors import InputError, VAEError
from vae_runtime.ort.devices import parse_device

T = TypeVar("T")

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse that says one sentence and exits with 2, and proposes the nearest option for a misspelt one."""

    options: list[str]

    def __init__(self, *, prog: str | None = None, description: str | None = None, help: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description or help,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        word, _, rest = message.partition("unrecognized arguments: ")
        if rest and not word:
            unknown = rest.split()[0]
            near = difflib.get_close_matches(unknown.split("=")[0], sorted(self._known_options()), n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"
            message = f"unknown argument {unknown}{hint}"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)

    def _known_options(self) -> set[str]:
        known = {option for action in self._actions for option in action.option_strings}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known.update(*(sub._known_options() for sub in action.choices.values()))
        return known


def integer(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}, expected an integer") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"got {text[:40]}, expected {low} to {high}")
        return value

    return parse


def integers(low: int, high: int) -> Callable[[str], list[int]]:
    """An argparse type: integers from `low` to `high` with commas between them."""
    parse = integer(low, high)
    return lambda text: [parse(part) for part in text.split(",")]


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a finite number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}, expected a number") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"got {text[:40]}, expected {low:g} to {high:g}")
        return value

    return parse


def output(*endings: str) -> Callable[[str], Path]:
    """An argparse type: a file to write, with one of these endings, in a folder that exists."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a name that ends in {' or '.join(endings)}")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"{path.parent} is not a folder; make it first")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise argparse.ArgumentTypeError(f"{text} cannot be written")
        return path

    return parse


def existing_file(text: str) -> str:
    """An argparse type: the path of a file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return text


def existing_path(text: str) -> str:
    """An argparse type: the path of a file or a folder that is there."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return text


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device, the same for every command."""
    parser.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N")


def add_variant(parser: argparse.ArgumentParser) -> None:
    """The option --variant, the same for every command that opens a model."""
    parser.add_argument("--variant", choices=VARIANTS, help="smaller graphs, where the model has them; else float32")


def _device(text: str) -> str:
    try:
        parse_device(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("device: ")) from None
    return text


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The same items, counted on stderr while they pass if a person looks at it: "encode  1280/14000  2350/s"."""
    shown, start, count = sys.stderr.isatty(), time.monotonic(), 0
    last = start
    for item in items:
        yield item
        count += len(item) if isinstance(item, Sized) else 1
        now = time.monotonic()
        if shown and now - last > 0.1:
            last = now
            of = f"/{total}" if total is not None else ""
            print(f"\r{what}  {count}{of}  {count / (now - start):.0f}/s ", end="", file=sys.stderr, flush=True)
    if shown and last > start:
        print("\r" + " " * 70 + "\r", end="", file=sys.stderr, flush=True)


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> NoReturn:
    """Call `main` and leave the process. An error of ours or of the disk is one line and status 1."""
    try:
        status = main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more while it shuts down; give it a place that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_FAILURE
    except (VAEError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_FAILURE
    raise SystemExit(status)
