"""Hooks of mkdocs: the command-line reference is what --help prints, and links to the repository become addresses."""

from __future__ import annotations

import functools
import importlib
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKER = "<!-- every verb -->"
PARSERS = {
    "vae_runtime": "vae_runtime.__main__",
    "vae_train": "vae_train.__main__",
    "benchmarks": "benchmarks.commands",
}
OUTSIDE = re.compile(
    r"\]\(((?:\.\./)+)((?:examples|exported|vae_runtime|vae_train|benchmarks|demo|tests|[A-Z]+\.md)[^)]*)\)"
)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the command line, and point links that leave docs/ to the repository."""
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, "\n".join(command_line()))
    return OUTSIDE.sub(rf"]({repository()}/blob/HEAD/\2)", markdown)


@functools.cache
def repository() -> str:
    """The address of the repository."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"])


def command_line() -> Iterator[str]:
    """Markdown with the help of each verb of each package."""
    os.environ["COLUMNS"] = "100"
    for package, module in PARSERS.items():
        parser = importlib.import_module(module).build_parser()
        parser.prog = f"python -m {package}"
        yield from section(2, parser.prog, parser.format_help())
        for name, verb in parser.verbs.items():
            yield from section(3, f"{package} {name}", verb.format_help())


def section(level: int, title: str, text: str) -> Iterator[str]:
    yield f"{'#' * level} {title}\n"
    yield f"```text\n{text.rstrip()}\n```\n"
