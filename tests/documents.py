"""README and docs as their code: the blocks of a page, and the folder that they are run in."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOOLS = {
    "curl": "asks the server of examples/server.py: test_examples.py",
    "mkdocs": "test_docs.py builds the site",
    "pre-commit": "needs the network: test_packaging.py compares its hooks with CI",
    "python3": "makes a virtual environment: .ci/run",
    "tritonserver": "a container of NVIDIA: test_triton.py reads the repository by its schema",
    "twine": "test_packaging.py checks the package",
    "uvicorn": "serves until it is stopped: test_examples.py",
}
"""Programs of others that commands of these pages call, and why no test of a page runs them."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def python_of(page: Path) -> ast.Module:
    """All Python of a page, as one program; SyntaxError if it is none."""
    return ast.parse("\n".join(blocks(page, "python")), str(page))


def commands_of(page: Path) -> list[str]:
    """The command lines of a page, without comments; `a && b` is two."""
    lines = [line.split("  #")[0] for block in blocks(page, "bash") for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def words_of(command: str) -> list[str]:
    """A command line, with console scripts and torchrun as the modules that they run."""
    words = shlex.split(command)
    if words[0] == "torchrun":
        return ["python", *words[words.index("-m") :]]
    scripts = {"anime-vae": "vae_runtime", "anime-vae-train": "vae_train"}
    return ["python", "-m", scripts[words[0]], *words[1:]] if words[0] in scripts else words


def fill(place: Path) -> None:
    """The files that the examples name: pictures, masks, a folder of faces, models."""
    rng = np.random.default_rng(0)
    for name, color in {"a": "teal", "b": "salmon", "me": "gold", "you": "navy"}.items():
        Image.new("RGB", (40, 50), color).save(place / f"{name}.png")
    hole = np.zeros((50, 40), np.uint8)
    hole[10:20, 10:30] = 255
    Image.fromarray(hole).save(place / "hole.png")
    Image.new("RGB", (8, 8), "olive").save(place / "thumbnail.png")
    (place / "faces").mkdir()
    for index in range(20):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(place / "faces" / f"{index:02d}.png")
    (place / "faces" / "notes.txt").write_text("no picture")
    shutil.copytree(place / "faces", place / "photos")
    (place / "exported").symlink_to(ROOT / "exported")
    (place / "runs" / "mine").mkdir(parents=True)
    for model in ("my-model", "runs/mine/exported"):
        (place / model).symlink_to(ROOT / "exported" / "anime-64")


@contextlib.contextmanager
def status_of(main: Callable[[list[str]], int], arguments: list[str]) -> Iterator[int]:
    """The exit status of a command line's main function."""
    try:
        yield main(arguments)
    except SystemExit as stop:
        pytest.fail(f"{arguments}: exit status {stop.code}")
