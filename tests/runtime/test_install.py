"""The pip command in messages: one that works for how this package was installed."""

from __future__ import annotations

import shlex
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from vae_runtime import install
from vae_runtime.install import install_command

ROOT = Path(__file__).parents[2]


def test_a_checkout_is_installed_from_itself():
    assert shlex.split(install_command("gpu")) == ["pip", "install", "-e", f"{ROOT}[gpu]"]


@pytest.mark.parametrize("kind", ["wheel", "a wheel that has gone", "an index"])
def test_a_wheel_and_an_index(kind, monkeypatch, tmp_path):
    wheel = tmp_path / "it's here" / "anime_vae-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    if kind == "wheel":
        wheel.touch()

    class Distribution:
        def read_text(self, name):
            return None if kind == "an index" else f'{{"url": "{wheel.as_uri()}", "archive_info": {{}}}}'

    monkeypatch.setattr(install, "__file__", str(tmp_path / "site-packages" / "vae_runtime" / "install.py"))
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    expected = f"{wheel}[cpu]" if kind == "wheel" else "anime-vae[cpu]"
    assert shlex.split(install_command("cpu")) == ["pip", "install", expected]


def test_pip_takes_the_command_for_a_wheel(tmp_path):
    """pip itself: `pip install 'a wheel[extra]'` is a requirement that it understands."""
    wheel = tmp_path / "anime_vae-0.1.0-py3-none-any.whl"
    about = "anime_vae-0.1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: anime-vae\nVersion: 0.1.0\nProvides-Extra: cpu\n"
        )
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--dry-run", "--target", str(tmp_path / "t")]
    done = subprocess.run([*command, f"{wheel}[cpu]"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
