"""The packages that users install: what sdist and wheel hold, their metadata, a wheel at work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from documents import ROOT

import vae_runtime

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LIMIT = 24e6


def test_the_version_has_one_source():
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "vae_runtime/__init__.py"
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "mkdocs.yml"):
        if path.name.lower() != "changelog.md":
            assert not re.search(
                rf"anime.vae[ =-]+v?{re.escape(vae_runtime.__version__)}", path.read_text(encoding="utf-8")
            )
    assert f"## {vae_runtime.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_address_of_the_repository_has_one_source():
    """It is a placeholder until the project is published."""
    repository = PROJECT["project"]["urls"]["Repository"]
    for path in (*ROOT.glob("*.*"), *(ROOT / "docs").rglob("*.*"), *(ROOT / "examples").iterdir()):
        if path.suffix in (".md", ".yml", ".py", ".ipynb"):
            assert repository not in path.read_text(encoding="utf-8"), path


def test_commits_run_what_ci_runs():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert all(f"python -m {command}" in hooks for command in ("ruff check", "ruff format --check", "mypy", "pytest"))
    assert all((ROOT / path).exists() for path in re.findall(r"tests/\w+\.py", hooks))


def test_the_constraints_are_versions_that_the_extras_allow():
    packaging = pytest.importorskip("packaging.requirements")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(line for extra in ("cpu", "train", "demo", "dev") for line in extras[extra]),
    ]
    for requirement in map(packaging.Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        if name != "anime-vae":
            assert requirement.specifier.contains(pinned[name]), name


def test_links_of_the_package_page_are_absolute():
    if find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    hook = _hook()
    text = "[a](docs/a.md) ![b](docs/b.png) [c](https://c.org/c) [![e](e.png)](#e)"
    assert hook.absolute_links(text, "https://x.org/y") == (
        "[a](https://x.org/y/blob/HEAD/docs/a.md) ![b](https://x.org/y/raw/HEAD/docs/b.png) [c](https://c.org/c) "
        "[![e](https://x.org/y/raw/HEAD/e.png)](#e)"
    )
    names = {Path(path).name for path in hook.bundled_files(ROOT)}
    assert {"config.json", "encoder.onnx", "decoder.onnx", "inverse.onnx", "prior.npz", "README.md"} <= names
    assert not [name for name in names if "int8" in name or "fp16" in name]


def _hook():
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A wheel and an sdist, built without a network from the tools that are installed."""
    for tool in ("build", "hatchling"):
        if find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")
    out = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def run(*arguments: str, cwd: Path, python: str = sys.executable, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VAE_DEVICE")}
    done = subprocess.run([python, *arguments], cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_packages_hold_what_they_should(packages):
    """The wheel is made from the sdist, so the sdist is complete."""
    wheel, sdist = packages
    assert wheel.stat().st_size < LIMIT
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vae_runtime", "vae_train", "anime_vae"}
    assert {path.replace("exported", "vae_runtime/exported", 1) for path in _hook().bundled_files(ROOT)} <= set(names)
    message = message_from_string(metadata)
    assert message["Version"] == vae_runtime.__version__
    extras = set(message.get_all("Provides-Extra"))
    assert {"cpu", "gpu", "train", "refine", "crop", "hub"} <= extras
    assert not extras & {"demo", "dev", "docs"}  # of a checkout alone
    assert "](docs/" not in metadata
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "docs/guide.md",
        "mkdocs.yml",
        "examples/tour.ipynb",
        "tests/test_packaging.py",
        "constraints.txt",
    } <= inside


@pytest.mark.slow
def test_twine_finds_nothing(packages, tmp_path):
    if find_spec("twine") is None:
        pytest.skip("twine is not installed")
    printed = run("-m", "twine", "check", "--strict", *map(str, packages), cwd=tmp_path)
    assert printed.count("PASSED") == 2


@pytest.mark.slow
def test_an_installed_wheel_works(packages, tmp_path):
    """In an environment of its own, which borrows NumPy, Pillow and ONNX Runtime from this one: no network."""
    run("-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
    folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(folder / "python")
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(packages[0]))
    run(*install, cwd=tmp_path)
    (site,) = (tmp_path / "venv").rglob("site-packages")
    borrowed = [Path(module.__file__).parent.parent for module in map(__import__, ("numpy", "PIL", "onnxruntime"))]
    (site / "borrowed.pth").write_text("\n".join({str(path) for path in borrowed}), encoding="utf-8")
    where = run("-c", "import vae_runtime; print(vae_runtime.__file__)", cwd=tmp_path, python=python)
    assert Path(where.strip()).is_relative_to(tmp_path)
    for script in ("anime-vae", "anime-vae-train"):
        done = subprocess.run([folder / script, "--version"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.strip() == vae_runtime.__version__
    subprocess.run(
        [folder / "anime-vae", "sample", "-n", "2", "--device", "cpu", "-o", "a.png"], cwd=tmp_path, check=True
    )
    assert (tmp_path / "a.png").stat().st_size > 1000
