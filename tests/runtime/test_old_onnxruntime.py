"""The oldest ONNX Runtime that pyproject.toml admits, which pip fetches for these tests alone.

The shipped graphs are of opset 20 and IR version 10, and 1.18 is the first to know the latter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

OLDEST = ("onnxruntime==1.18.1", "numpy==1.26.4")
ROOT = Path(__file__).parents[2]
CHECK = """
import sys
import onnxruntime
from vae_runtime.__main__ import main
assert onnxruntime.__version__ == "1.18.1", onnxruntime.__version__
sys.exit(main(["check", sys.argv[1], "--device", "cpu"]))
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory) -> Path:
    """A folder with the oldest ONNX Runtime, and a NumPy that it was built for."""
    folder = tmp_path_factory.mktemp("oldest")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--target"]
    fetched = subprocess.run([*command, folder, *OLDEST], capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"needs {OLDEST[0]} from PyPI: {fetched.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("model", sorted(path.parent.name for path in (ROOT / "exported").glob("*/config.json")))
def test_the_shipped_graphs_draw_the_same_in_the_oldest(oldest, model):
    place = os.environ | {"PYTHONPATH": os.pathsep.join([str(oldest), str(ROOT)])}
    command = [sys.executable, "-c", CHECK, str(ROOT / "exported" / model)]
    done = subprocess.run(command, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.network
def test_the_runtime_works_in_the_oldest(oldest):
    """Its tests of sessions, of the verbs in Python and of the command line, with NumPy of that time."""
    place = os.environ | {"PYTHONPATH": os.pathsep.join([str(oldest), str(ROOT)])}
    tests = [
        f"tests/runtime/test_{name}.py" for name in ("ort", "vae", "prior", "inversion", "runtime_cli", "cli_options")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_lower_bound_is_what_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = OLDEST[0].split("==")[1]
    (needed,) = project["optional-dependencies"]["cpu"]
    assert needed.startswith(f"onnxruntime>={version},")
    assert any(needed.startswith("numpy>=1.26,") for needed in project["dependencies"])
