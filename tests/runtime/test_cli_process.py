"""The command line as a process: streams that are missing or narrow, names that are not text, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vae_runtime.stream import open_codes, read_names

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shells and signals of POSIX")
COMMAND = [sys.executable, "-m", "vae_runtime"]


@pytest.fixture
def picture(tmp_path, rng):
    """A picture whose name no ASCII stream can show."""
    path = tmp_path / "Gesicht-ä-顔.png"
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return path


def shell(text: str, tmp_path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, capture_output=True, env=os.environ | {"VAE_DEVICE": "cpu"} | environment
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full"])
def test_a_missing_stream_costs_no_work(closed, picture, tmp_path, tiny):
    text = f"exec '{sys.executable}' -m vae_runtime encode '{picture.name}' -o codes.npy {closed}"
    done = shell(f"{text} --model '{tiny.folder}'", tmp_path)
    assert b"Traceback" not in done.stderr
    assert done.returncode == (1 if "full" in closed else 0)
    assert open_codes(tmp_path / "codes.npy").shape == (1, 4)
    assert read_names(tmp_path / "codes.npy") == [picture.name]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_stream_that_cannot_show_a_name_shows_an_escape(encoding, picture, tmp_path, tiny):
    out = picture.with_suffix(".out.png").name
    text = f"exec '{sys.executable}' -m vae_runtime reconstruct '{picture.name}' -o '{out}' --model '{tiny.folder}'"
    done = shell(text, tmp_path, PYTHONIOENCODING=f"{encoding}:strict")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() == out.encode(encoding, "backslashreplace")
    refused = shell(f"exec '{sys.executable}' -m vae_runtime info 'ä-顔'", tmp_path, PYTHONIOENCODING=encoding)
    assert refused.returncode == 1
    assert b"Traceback" not in refused.stderr


def test_names_that_are_not_utf8(picture, tmp_path, tiny):
    folder = os.fsencode(tmp_path) + b"/f\xff"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    for name in (b"/a\xe9.png", b"/broken\xe9.png"):
        with open(folder + name, "wb") as file:
            file.write(picture.read_bytes() if b"broken" not in name else b"no picture")
    command = [os.fsencode(part) for part in [*COMMAND, "encode"]]
    more = [os.fsencode(part) for part in ["--model", tiny.folder, "--device", "cpu"]]
    done = subprocess.run([*command, folder, b"-o", folder + b"/c.npy", *more], capture_output=True)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert [os.fsencode(name) for name in read_names(os.fsdecode(folder + b"/c.npy"))] == [folder + b"/a\xe9.png"]
    command = [os.fsencode(part) for part in [*COMMAND, "walk", "-n", "2", "--steps", "2"]]
    for ending in (b".webp", b".gif", b".png"):
        done = subprocess.run([*command, b"-o", folder + b"/w" + ending, *more], capture_output=True)
        assert done.returncode == 0, done.stderr
        assert os.path.getsize(folder + b"/w" + ending) > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda n: str(n)
)
def test_a_signal_while_encoding_keeps_the_rows_and_says_so(number, status, picture, tmp_path, tiny):
    for index in range(400):
        (tmp_path / f"{index:03}.png").symlink_to(picture)
    command = [*COMMAND, "encode", *sorted(path.name for path in tmp_path.glob("[0-9]*.png"))]
    command += ["--batch", "1", "-o", "codes.npy", "--model", str(tiny.folder), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "codes.npy").exists() or not len(open_codes(tmp_path / "codes.npy")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was faster than the signal")
    assert process.returncode == status
    assert "Traceback" not in said
    assert "--resume" in said
    rows = len(open_codes(tmp_path / "codes.npy"))
    assert 0 < rows == len(read_names(tmp_path / "codes.npy")) < 400
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(open_codes(tmp_path / "codes.npy")) == 400


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, tiny):
    text = f"trap '' HUP; exec '{sys.executable}' -c 'import signal; from vae_runtime.__main__ import run; "
    text += "run(lambda a: int(signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN))'"
    assert shell(text, tmp_path).returncode == 0


def test_the_console_script_has_a_version_and_its_own_name():
    code = "import sys; sys.argv = ['anime-vae', *sys.argv[1:]]; from vae_runtime.__main__ import script; script()"
    shown = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout.strip()) == (0, __import__("vae_runtime").__version__)
    helped = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert helped.stdout.startswith("usage: anime-vae VERB")
