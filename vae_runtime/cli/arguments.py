"""What the command lines of this project share: verbs, one-sentence errors with exit status 2, checked arguments."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from vae_runtime import __version__
from vae_runtime.config import VARIANTS
from vae_runtime.errors import InputError, VAEError
from vae_runtime.ort.devices import parse_device

T = TypeVar("T")

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class UsageError(VAEError, ValueError):
    """Arguments that contradict each other or name nothing to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: raised in the main thread, so that files are closed and sentences said as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of an epilog, and shows a default unless it is None, False or told by the help text itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A command line with verbs, listed in groups by --help. A mistake is one sentence on stderr and exit status 2."""

    def __init__(
        self,
        prog: str | None = None,
        description: str | None = None,
        examples: Sequence[str] = (),
        default_verb: str | None = None,
    ) -> None:
        """examples: for --help. default_verb: the verb of a command line that begins with an option."""
        epilog = _section("examples", examples)
        super().__init__(prog, None, description, epilog, formatter_class=Formatter, allow_abbrev=False)
        self.verbs: dict[str, Parser] = {}
        self._groups: dict[str, list[str]] = {}
        self._examples, self._default_verb = examples, default_verb
        self._verbs_action: Any = None

    def add_verb(
        self, group: str, name: str, text: str, do: Callable[..., int | None], examples: Sequence[str] = ()
    ) -> Parser:
        """A verb in a group of --help. do: called with the parsed arguments, returns the exit status, None for 0."""
        if self._verbs_action is None:
            self.add_argument("--version", action="version", version=__version__, help="show the version and exit")
            self._verbs_action = self.add_subparsers(dest="verb", metavar="VERB", help=argparse.SUPPRESS)
        verb: Parser = self._verbs_action.add_parser(
            name, description=f"{text[0].upper()}{text[1:]}.", examples=examples
        )
        verb.set_defaults(do=do)
        self.verbs[name] = verb
        self._groups.setdefault(group, []).append(f"{name:<14}{text}")
        self.usage = f"{self.prog} {'[VERB]' if self._default_verb else 'VERB'} [options]"
        sections = [_section(title, lines) for title, lines in self._groups.items()]
        sections += [f"{self.prog} VERB --help lists the options of a verb.", _section("examples", self._examples)]
        self.epilog = "\n\n".join(filter(None, sections))
        return verb

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """argparse's; where there is a default verb, it goes in front of a command line that begins with an option."""
        words = list(sys.argv[1:] if args is None else args)
        if self.verbs and not (words and words[0] in self._option_string_actions):
            if self._default_verb and (not words or words[0].startswith("-")):
                words.insert(0, self._default_verb)
            self._check_verb(words)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self._refuse(unknown[0], self.verbs.get(getattr(parsed, "verb", ""), self))
        return parsed

    def _check_verb(self, words: Sequence[str]) -> None:
        if not words or words[0].startswith("-"):
            self.error(f"a verb is missing; see {self.prog} --help")
        if words[0] not in self.verbs:
            near = difflib.get_close_matches(words[0], self.verbs, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            self.error(f"unknown verb {words[0]!r}; {hint}")

    def _refuse(self, word: str, verb: Parser) -> NoReturn:
        """Exit with the sentence about an argument that `verb` does not take."""
        option = word.split("=")[0]
        near = difflib.get_close_matches(option, verb._option_string_actions, n=1)
        others = [name for name, parser in self.verbs.items() if option in parser._option_string_actions]
        hint = f"see {verb.prog} --help"
        if others:
            hint = f"{', '.join(others)} {'takes' if len(others) == 1 else 'take'} it"
        elif near and option.startswith("-"):
            hint = f"did you mean {near[0]}?"
        self.error(f"{verb.prog} does not take {word}; {hint}")

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit with 2."""
        print(f"error: {one_line(' '.join(message.split()))}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)]) if lines else ""


def one_line(text: str) -> str:
    """The text on one line: what a file name may hold, but a terminal would obey, is escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def program(module: str, script: str) -> str:
    """How this process was started: the name of the console script, or "python -m MODULE"."""
    return script if Path(sys.argv[0]).stem == script else f"python -m {module}"


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
    """An argparse type: integers from `low` to `high`, separated by commas."""
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
            raise argparse.ArgumentTypeError(f"{path.parent} is not a folder; create it first")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder, expected a file")
        if path.exists() and not path.is_file():
            raise argparse.ArgumentTypeError(f"{text} is not a regular file; give a new name")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise argparse.ArgumentTypeError(f"{text} cannot be written: permission denied")
        return path

    return parse


def existing_file(text: str) -> str:
    """An argparse type: the path of a file that exists."""
    path = Path(existing_path(text, "file"))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, expected a file")
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is a pipe or a device, expected a file; save it as one first")
    return text


def existing_path(text: str, kind: str = "file or folder") -> str:
    """An argparse type: the path of a file or a folder that exists."""
    if not text:
        raise argparse.ArgumentTypeError(f"got an empty text, expected the name of a {kind}")
    try:
        os.stat(text)
    except FileNotFoundError:
        raise argparse.ArgumentTypeError(f"{text}: no such {kind}") from None
    except OSError as error:  # a folder that may not be entered, a name that is too long, links in a circle
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    return text


_INPUTS = ("images", "image", "a", "b", "mask", "codes", "directions", "prior")


def check_inputs_stay(parsed: argparse.Namespace) -> None:
    """Raise UsageError if the file to write is one of those to read."""
    output: Path | None = getattr(parsed, "output", None)
    if output is None or not output.exists():
        return
    for name in _INPUTS:
        given = getattr(parsed, name, None) or ()
        for path in [given] if isinstance(given, str) else given:
            if Path(path).exists() and output.samefile(path):
                raise UsageError(f"--output {output}: would replace the input {path}; choose another name")


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device."""
    parser.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N")


def add_variant(parser: argparse.ArgumentParser) -> None:
    """The option --variant."""
    parser.add_argument("--variant", choices=VARIANTS, help="smaller graphs, where the model has them")


def _device(text: str) -> str:
    try:
        parse_device(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("device: ")) from None
    return text


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The same items, counted on stderr if it is a terminal: "encode  1280/14000  2350/s"."""
    shown, start, count = sys.stderr is not None and sys.stderr.isatty(), time.monotonic(), 0
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
    """Call `main` and exit with its status. A VAEError or OSError becomes one line on stderr and status 1.

    Ctrl-C, SIGTERM and SIGHUP end with 130, 143 and 129. Missing output streams, and those that cannot show a
    character, do no harm.
    """
    _prepare_streams()
    _raise_on_signals()
    try:
        status = main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt as stop:
        status = stop.status if isinstance(stop, Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        status = EXIT_FAILURE
    except (VAEError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = EXIT_FAILURE
    raise SystemExit(_flush() or status)


def _prepare_streams() -> None:
    """Give a process without stdout or stderr, as after `>&-`, the null device, and let none fail at a character."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, so that no file of ours gets it
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _raise_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into `Terminated`, unless they are ignored (nohup)."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)


def _flush() -> int:
    """Write out what was printed; 1 if that fails: the reader has gone, or the disk is full."""
    try:
        sys.stdout.flush()
        return 0
    except (OSError, ValueError) as error:
        if not isinstance(error, BrokenPipeError):
            print(f"error: stdout: {error}", file=sys.stderr)
        # Python flushes stdout once more while it shuts down; give it a place that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
