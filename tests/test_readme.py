"""The README is run, not believed: its Python, its commands, and the promise that CI runs its second one."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHELL = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
PLAY = [line for line in SHELL if line.startswith("python -m vae_runtime")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the pictures that the examples name."""
    monkeypatch.chdir(tmp_path)
    for name, colour in {"a": "teal", "b": "salmon", "me": "gold", "you": "navy"}.items():
        Image.new("RGB", (40, 50), colour).save(f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("code", PYTHON)
@pytest.mark.filterwarnings("ignore:running on the CPU")
def test_the_python_examples_run(code, place):
    names: dict[str, object] = {}
    exec(code, names)
    assert names["faces"].shape == (16, 32, 32, 3)
    assert names["mu"].shape == names["logvar"].shape == (2, 128)
    assert names["again"].shape == (1, 32, 32, 3)
    assert names["between"].shape == (8, 32, 32, 3)


@pytest.mark.parametrize("line", PLAY)
def test_the_runtime_commands_run(line, place):
    arguments = shlex.split(line)
    done = subprocess.run([sys.executable, *arguments[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "-o" in arguments:
        with Image.open(arguments[arguments.index("-o") + 1]) as picture:
            assert min(picture.size) > 30


def test_there_is_something_to_run():
    assert len(PYTHON) == 1
    assert len(PLAY) == 4


def test_there_are_two_set_up_commands_and_ci_runs_the_second():
    setup = [line for line in SHELL if "-m venv" in line]
    assert len(setup) == 2
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = setup[1].split(" && ")[-2:]
    assert install.replace("pip install", "pip install -q") in script
    assert test in script


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT))
def test_every_link_leads_somewhere(path):
    assert (ROOT / path).exists()
