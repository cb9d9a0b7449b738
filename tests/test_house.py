"""The architecture: who may import whom, no circles, no hidden imports, no side effects at import, lint and types."""

from __future__ import annotations

import ast
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from vae_runtime.config import VARIANTS, ModelConfig, graph_files
from vae_runtime.hub import bundled_model

ROOT = Path(__file__).parent.parent
LAYERS = {"vae_runtime": 0, "vae_train": 1, "benchmarks": 2, "demo": 2}
FORBIDDEN = {
    "vae_runtime": {"torch", "onnx", "onnxscript", "gradio", "safetensors", "tqdm", "matplotlib"},
    "vae_train": {"gradio"},
    "benchmarks": {"gradio"},
    "demo": {"torch"},
}
MAY_IMPORT = {"vae_runtime": set(), "vae_train": {"vae_runtime"}, "benchmarks": {"vae_runtime", "vae_train"}}
MAY_IMPORT["demo"] = {"vae_runtime"}
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
    assert everywhere & LAYERS.keys() <= MAY_IMPORT[package] | {package}
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


HIDDEN = {"import_module", "__import__", "spec_from_file_location", "exec_module", "runpy"}


def hidden_imports(source: str) -> set[str]:
    """Names of `HIDDEN` that a file uses: an import that the rules above would not see."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = (node.names for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))
    return HIDDEN & (names | {name.name for aliases in imported for name in aliases})


@pytest.mark.parametrize("package", LAYERS)
def test_no_import_is_hidden(package):
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == package:
            assert hidden_imports(path.read_text(encoding="utf-8")) == set(), path


@pytest.mark.parametrize(
    "source",
    [
        "import importlib\nimportlib.import_module('torch')",
        "from importlib import import_module as load\nload('torch')",
        "__import__('torch')",
        "import runpy",
    ],
)
def test_hidden_imports_are_seen(source):
    assert hidden_imports(source)


def module_imports(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere, TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unused = {id(inner) for node in ast.walk(tree) if _is_type_checking(node) for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inside = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
    return found & MODULES.keys() - {module_name(path)}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle of a graph, empty if there is none."""
    done: set[str] = set()

    def visit(node: str, above: list[str]) -> list[str]:
        if node in above:
            return [*above[above.index(node) :], node]
        if node not in done:
            for other in sorted(graph[node]):
                if found := visit(other, [*above, node]):
                    return found
        done.add(node)
        return []

    return next((found for node in graph if (found := visit(node, []))), [])


def test_modules_import_each_other_in_no_circle():
    graph = {name: module_imports(path) for name, path in MODULES.items()}
    assert circle(graph) == []


def test_circles_are_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_runtime_loads_nothing_heavy_and_works_without_torch(tmp_path, tiny):
    """In a process where importing torch, onnx, gradio or cv2 fails, a model is loaded, run and nothing is printed."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "onnx", "gradio", "cv2", "vae_train", "benchmarks", "huggingface_hub"}}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import vae_runtime, vae_runtime.__main__
assert "onnxruntime" not in sys.modules
vae = vae_runtime.VAE.load({str(tiny.folder)!r}, device="cpu")
vae.interpolate(*vae.sample(2, rng=0))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_default_model_fits_into_a_wheel_of_24_mb():
    """What tests/test_packaging.py builds; measured here without building."""
    folder = bundled_model()
    variants = {file for variant in VARIANTS for file in graph_files(variant)}
    needed = {*ModelConfig.load(folder).files, "config.json", "README.md"} - variants
    assert not [file for file in needed if not (folder / file).is_file()]
    assert sum(len(zlib.compress((folder / file).read_bytes())) for file in needed) < 23.5e6


def test_no_path_of_a_machine_is_published():
    for path in sorted((ROOT / "exported").rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            for text in (b"/home", b"/root", b"/Users", b"/tmp", b"site-packages", b"/work"):
                assert text not in data, f"{path} holds {text.decode()}"


@pytest.mark.parametrize(
    "command", ["ruff check .", "ruff format --check .", pytest.param("mypy", marks=pytest.mark.slow)]
)
def test_lint_and_types(command):
    tool = command.split()[0]
    if find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "mypy" and not (find_spec("torch") and find_spec("gradio")):
        pytest.skip("the types of vae_train need torch, those of demo gradio")
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
