"""The Space: a folder that runs by itself, pushed to a local stand-in of the Hub."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from demo.space import _card, main
from tests.demo.conftest import free_port, serving
from tests.hub_stand_in import hub
from vae_runtime import InputError, VAEError
from vae_runtime.errors import HubError
from vae_runtime.hub import push


@pytest.fixture(scope="module")
def space(tmp_path_factory, folder) -> Path:
    """The assembled folder, with the tiny model first and the bundled one after it."""
    from vae_runtime.hub import bundled_model

    out = tmp_path_factory.mktemp("space") / "space"
    assert main([str(folder), str(bundled_model()), "--out", str(out), "--link", "me/model"]) == 0
    return out


def test_the_folder_is_a_space(space):
    head = (space / "README.md").read_text(encoding="utf-8").split("---")[1]
    for line in ("sdk: gradio", 'python_version: "3.12"', "app_file: app.py", "models: [me/model]", "license: mit"):
        assert line in head.splitlines()
    assert f"sdk_version: {__import__('gradio').__version__}" in head
    pins = (space / "requirements.txt").read_text().splitlines()
    assert all(pin.count("==") == 1 for pin in pins)
    assert not [*space.rglob("__pycache__"), *space.rglob("*.pyi")]


def test_the_thumbnail_is_an_address_as_the_hub_asks_for(tmp_path):
    for address, lines in (
        (None, []),
        ("me/faces", ["https://huggingface.co/spaces/me/faces/resolve/main/thumbnail.png"]),
    ):
        _card(tmp_path, "static", "", argparse.Namespace(link=None, push=address), "")
        head = (tmp_path / "README.md").read_text(encoding="utf-8").split("---")[1].splitlines()
        assert [line.removeprefix("thumbnail: ") for line in head if line.startswith("thumbnail")] == lines


def test_nothing_of_this_machine_is_in_it(space):
    for path in space.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for text in (str(Path(__file__).parents[2]).encode(), b"site-packages", b"/root", b"/home"):
                assert text not in data, f"{path.name} holds {text!r}"


def _start(space: Path, tmp_path: Path, python: str, page) -> None:
    """Start app.py from a copy of the folder alone, and click through it."""
    place = shutil.copytree(space, tmp_path / "copy")
    port = free_port()
    keep = ("PATH", "HOME", "LANG", "TMPDIR")
    clean = {key: value for key, value in os.environ.items() if key in keep}
    # The folder's own packages come first, whatever is installed: app.py says where they are from.
    told = "import demo, vae_runtime; print(demo.__file__, vae_runtime.__file__)"
    done = subprocess.run([python, "-c", told], cwd=place, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.count(str(place)) == 2
    with serving([python, "app.py", "--port", str(port)], port, cwd=place, env=clean) as (address, _):
        page.goto(address)
        page.locator("#sample-faces img").first.wait_for()
        page.locator("#new-faces").click()
        page.wait_for_url("**seed=**")
        page.locator("#sample-faces button").first.click()
        page.locator("#sample-faces-to-edit").click()
        page.get_by_role("tab", name="Edit", selected=True).wait_for()
        page.locator("#edit-out img").first.wait_for()
        before = page.locator("#edit-out img").get_attribute("src")
        page.locator("#edit-sliders input[type=range]").first.fill("2.5")
        page.wait_for_function(f"document.querySelector('#edit-out img').src !== '{before}'")


def test_the_folder_runs_by_itself(space, tmp_path, page):
    _start(space, tmp_path, sys.executable, page)


needs_install = pytest.mark.skipif(
    "SPACE_INSTALL" not in os.environ, reason="installs a hundred packages: set SPACE_INSTALL=1, or to a Python"
)


def requirements(space: Path) -> list[list[str]]:
    """What pip is given."""
    return [["-r", str(space / "requirements.txt")]]


@needs_install
def test_the_requirements_resolve_for_the_python_of_the_space(space, tmp_path):
    """Each package, of this one version, has a wheel for it."""
    head = (space / "README.md").read_text(encoding="utf-8")
    wanted = head.split('python_version: "')[1].split('"')[0]
    there = ["--python-version", wanted, "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"]
    there += ["--only-binary=:all:", "--dry-run", "--ignore-installed", "--target", str(tmp_path / "none")]
    packages = [word for words in requirements(space) for word in words]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *there, *packages], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Would install" in done.stdout


@needs_install
def test_the_folder_runs_in_an_environment_of_its_own(space, tmp_path, page):
    chosen = os.environ["SPACE_INSTALL"]
    interpreter = chosen if Path(chosen).is_file() else sys.executable
    subprocess.run([interpreter, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    for wanted in requirements(space):
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    _start(space, tmp_path, python, page)


def test_the_folder_is_ready_for_git(space):
    attributes = (space / ".gitattributes").read_text()
    large = {path.suffix for path in space.rglob("*") if path.is_file() and path.stat().st_size > 10 * 2**20}
    assert all(f"*{suffix} filter=lfs" in attributes for suffix in {*large, ".onnx"})
    pins = {pin.split("==")[0] for pin in (space / "requirements.txt").read_text().splitlines()}
    assert {"gradio", "numpy", "onnxruntime", "pillow"} <= pins


@pytest.mark.slow
@pytest.mark.parametrize("retry", [["--static", "--engine", "none"], []])
def test_a_failed_space_leaves_nothing_and_can_be_tried_again(folder, tmp_path, retry):
    out = tmp_path / "space"
    with pytest.raises(OSError, match="none"):
        main([str(folder), "--static", "--engine", str(tmp_path / "none"), "--out", str(out)])
    assert not list(tmp_path.iterdir())
    if retry:
        with pytest.raises(OSError, match="none"):
            main([str(folder), *retry, "--out", str(out)])
    else:
        assert main([str(folder), "--out", str(out)]) == 0
        assert (out / "app.py").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["space"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "arguments", [[], ["--out"], ["--outt", "x"], ["--out", "x", "--push"]], ids=lambda value: " ".join(value) or "none"
)
def test_a_bad_command_line_exits_with_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["nobody", "a/b/c", "../x", "a/b@c d"])
def test_a_bad_address_is_refused_before_anything_is_made(address, tmp_path):
    with pytest.raises(VAEError, match="expected hf:owner/name"):
        main(["--out", str(tmp_path / "new"), "--push", address])
    assert not (tmp_path / "new").exists()


def test_push_without_a_token_says_what_to_do(space, monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(HubError, match="no token, so nothing was pushed"):
        push(space, "hf:me/space", space_sdk="gradio")


def test_push_sends_every_file(space, tmp_path):
    """In a process of its own, for huggingface_hub reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub")
    there = tmp_path / "there"
    there.mkdir()
    with hub("spaces", "me/space", there) as (endpoint, log):
        code = f"""
from pathlib import Path
from vae_runtime.hub import push
print(push(Path({str(space)!r}), 'hf:me/space', space_sdk='gradio'))"""
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": "hf_secret",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | settings,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "/commit/" in done.stdout
    assert any("/api/repos/create" in line for line in log)
    sent = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert sent == {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert np.array_equal(*[np.fromfile(root / "exported/tiny/decoder.onnx", np.uint8) for root in (space, there)])
