"""README and docs are run, not believed: every block of Python, every command, the site and the notebook."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import documents
import pytest
from documents import PAGES, ROOT, TOOLS, commands_of, python_of, words_of
from PIL import Image

from vae_runtime import VAE
from vae_runtime.__main__ import build_parser as runtime_parser
from vae_runtime.__main__ import main as runtime_main

NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
COMMANDS = sorted({line for page in PAGES for line in commands_of(page)})
RUNTIME = [line for line in COMMANDS if words_of(line)[:3] == ["python", "-m", "vae_runtime"]]
MODULES = [line for line in COMMANDS if words_of(line)[:2] == ["python", "-m"] and line not in RUNTIME]
NEEDS_ATTRIBUTES = re.compile(r"--where|attributes|where=")
TOUR = ROOT / "examples" / "tour.ipynb"
NOT_RUN = ("push", "hf:")
"""Parts of commands that need the network; they are only parsed."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything that the examples name."""
    documents.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def has_attributes() -> bool:
    with VAE.load(device="cpu") as vae:
        return vae.classifiers is not None


@pytest.mark.parametrize("page", [pytest.param(page, id=name) for page, name in zip(PAGES, NAMES, strict=True)])
def test_languages_of_code_blocks_are_known(page):
    """A block without a language would be run by no test."""
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "bash", "text"}
    assert set(fences[1::2]) <= {""}


WITH_PYTHON = [pytest.param(page, id=name) for page, name in zip(PAGES, NAMES, strict=True) if python_of(page).body]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:running on the CPU")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page, place):
    program = python_of(page)
    if not has_attributes():
        program.body = [node for node in program.body if not _needs_attributes(node)]
    names: dict[str, object] = {}
    exec(compile(program, str(page), "exec"), names)
    if "faces" in names:
        assert names["faces"].shape[1:] == (64, 64, 3)


def _needs_attributes(node) -> bool:
    return bool(re.search(r"where=|\.attributes\(|\.classifiers", ast.unparse(node)))


@pytest.mark.parametrize("line", RUNTIME)
def test_the_runtime_takes_a_command(line, place):
    for output in ("codes.npy", "mine.npz"):
        (place / output).touch()
    runtime_parser().parse_args(words_of(line)[3:])


@pytest.mark.slow
def test_the_commands_of_the_runtime_run(place, monkeypatch, capsys):
    """All in one folder, those that others build on first."""
    monkeypatch.setenv("VAE_DEVICE", "cpu")
    first = ("encode", "adapt")
    runnable = [line for line in RUNTIME if not any(part in line for part in NOT_RUN)]
    if not has_attributes():
        runnable = [line for line in runnable if not NEEDS_ATTRIBUTES.search(line)]
    assert len(runnable) >= 20
    for line in sorted(runnable, key=lambda line: (not any(f" {verb} " in line for verb in first), line)):
        words = words_of(line)[3:]
        if words[0] == "encode" and "--resume" not in words:
            for path in place.glob("codes.*"):
                path.unlink()
        assert runtime_main(words) == 0, line
        if "-o" in words and words[words.index("-o") + 1].endswith((".png", ".webp", ".gif")):
            with Image.open(words[words.index("-o") + 1]) as picture:
                assert min(picture.size) > 30, line


@pytest.mark.parametrize("line", MODULES)
def test_other_modules_take_their_commands(line, place, capsys):
    module, arguments = words_of(line)[2], words_of(line)[3:]
    if module in ("build", "pytest"):
        return
    if module in ("vae_train", "benchmarks"):
        pytest.importorskip("torch")
        room = {"vae_train": "__main__", "benchmarks": "commands"}[module]
        importlib.import_module(f"{module}.{room}").build_parser().parse_args(arguments)
        return
    assert module.split(".")[0] in ("demo", "tests")
    source = Path(ROOT, *module.split("."))
    text = (source.with_suffix(".py") if source.with_suffix(".py").exists() else source / "__main__.py").read_text()
    assert all(f'"{word}"' in text for word in arguments if word.startswith("--")), line


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in RUNTIME + MODULES])
def test_no_command_is_unknown(line):
    words = words_of(line)
    if words[0] == "pip":
        extras = re.findall(r"\.\[([a-z,]+)\]", line)
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        assert words[1] == "install"
        assert {extra for group in extras for extra in group.split(",")} <= known.keys()
    elif words[0] == "python":
        text = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in words if word.startswith("--"))
    else:
        assert words[0] in TOOLS or line == ". .venv/bin/activate"


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("mkdocs") and find_spec("mkdocstrings")), reason="mkdocs is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("torch")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    reference = (tmp_path / "site" / "reference" / "command_line" / "index.html").read_text(encoding="utf-8")
    assert "anime-vae avatar" in reference or "vae_runtime avatar" in reference
    assert "fit_prior" in (tmp_path / "site" / "reference" / "runtime" / "index.html").read_text(encoding="utf-8")


def test_the_notebook_has_its_pictures():
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert TOUR.stat().st_size < 2e6


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("nbclient") and find_spec("ipykernel")), reason="nbclient is not installed")
def test_the_notebook_runs(tmp_path):
    """In a process of its own: the event loop of nbclient leaves warnings behind."""
    code = f"""
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read({str(TOUR)!r}, 4)
NotebookClient(notebook, timeout=300, resources={{"metadata": {{"path": {str(tmp_path)!r}}}}}).execute()
outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
print(sum("image/png" in output.get("data", {{}}) for output in outputs))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8


@pytest.mark.parametrize("page", [pytest.param(page, id=name) for page, name in zip(PAGES, NAMES, strict=True)])
def test_links_of_pages_lead_somewhere(page):
    """Also those out of docs/, which mkdocs does not follow."""
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
