"""The house rules: who may import whom, no side effects at import, lint and types."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from vae_runtime.config import VARIANTS, ModelConfig, graph_files
from vae_runtime.hub import bundled_model

ROOT = Path(__file__).parent.parent
LAYERS = {"vae_runtime": 0, "vae_train": 1, "demo": 2}
FORBIDDEN = {
    "vae_runtime": {"torch", "onnx", "onnxscript", "gradio", "safetensors", "vae_train", "demo", "tqdm", "matplotlib"},
    "vae_train": {"gradio", "demo"},
    "demo": {"torch", "vae_train"},
}
ONLY_LAZY = {"vae_runtime": {"cv2", "huggingface_hub", "onnxruntime"}, "vae_train": {"huggingface_hub"}}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Root packages that a file imports: (at import time, anywhere)."""

    def roots(node: ast.AST) -> set[str]:
        if isinstance(node, ast.Import):
            return {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            return {node.module.split(".")[0]}
        return set()

    tree = ast.parse(path.read_text(encoding="utf-8"))
    everywhere = {root for node in ast.walk(tree) for root in roots(node)}
    inner = {
        root
        for scope in ast.walk(tree)
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_type_checking(scope)
        for node in ast.walk(scope)
        for root in roots(node)
    }
    top = {root for node in ast.walk(tree) for root in roots(node)} - inner
    top |= {root for node in tree.body for root in roots(node)}
    return top, everywhere


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


SOURCES = [path for package in LAYERS for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down_only(path):
    package = path.relative_to(ROOT).parts[0]
    top, everywhere = imports(path)
    assert not everywhere & FORBIDDEN[package]
    assert not top & ONLY_LAZY.get(package, set())


def test_the_import_reader_sees_what_it_must(tmp_path):
    source = tmp_path / "m.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nimport numpy.linalg\nif TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from cv2 import dnn\ntry:\n    import gradio\nexcept ImportError:\n    pass\n"
    )
    top, everywhere = imports(source)
    assert top == {"typing", "numpy", "gradio"}
    assert everywhere == {"typing", "numpy", "gradio", "torch", "cv2"}


def test_the_runtime_loads_nothing_heavy_and_works_without_torch(tmp_path, tiny):
    """In a process where importing torch, onnx, gradio or cv2 fails, a model is loaded, run and nothing is printed."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "onnx", "gradio", "cv2", "vae_train", "huggingface_hub", "matplotlib"}}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import vae_runtime, vae_runtime.__main__
assert "onnxruntime" not in sys.modules
vae = vae_runtime.VAE.load({str(tiny.folder)!r}, device="cpu")
vae.interpolate(*vae.sample(2, rng=0))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_wheel_holds_the_default_model_and_stays_below_20_mb():
    """Its graphs in float32 and all that they need; neither the smaller variants nor the pictures of its card."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    folder = bundled_model()
    assert {Path(path).parent for path in included} == {folder.relative_to(ROOT)}
    assert all(place == f"vae_runtime/{path}" for path, place in included.items())
    variants = {file for variant in VARIANTS for file in graph_files(variant)}
    needed = {*ModelConfig.load(folder).files, "config.json", "README.md"} - variants
    assert {Path(path).name for path in included} == needed
    assert sum(len(zlib.compress((folder / file).read_bytes())) for file in needed) < 19.5e6


def test_no_path_of_a_machine_is_published():
    for path in sorted((ROOT / "exported").rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            for text in (b"/home", b"/root", b"/Users", b"/tmp", b"site-packages", b"/work"):
                assert text not in data, f"{path} holds {text.decode()}"


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_lint_and_types(command):
    tool = command.split()[0]
    if find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "mypy" and not (find_spec("torch") and find_spec("gradio")):
        pytest.skip("the types of vae_train need torch, those of demo gradio")
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
