"""The README is run, not believed: its Python, its commands, and the promise that CI runs its second one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_runtime import save_animation

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHELL = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
PLAY = [line for line in SHELL if line.startswith(("python -m vae_runtime", "python -m benchmarks"))]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the pictures that the examples name."""
    monkeypatch.chdir(tmp_path)
    for name, colour in {"a": "teal", "b": "salmon", "me": "gold", "you": "navy"}.items():
        Image.new("RGB", (40, 50), colour).save(f"{name}.png")
    hole = np.zeros((50, 40), np.uint8)
    hole[10:20, 10:30] = 255
    Image.fromarray(hole).save("hole.png")
    Image.new("RGB", (8, 8), "olive").save("thumbnail.png")
    (tmp_path / "faces").mkdir()
    for name in ("a", "b", "me", "you"):
        shutil.copy(f"{name}.png", "faces")
    return tmp_path


APPS = {block.split(":")[0].removeprefix("# "): block for block in PYTHON if block.startswith("# ")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:running on the CPU")
def test_the_python_example_runs(place):
    names: dict[str, object] = {}
    exec(PYTHON[0], names)
    assert names["faces"].shape == (16, 64, 64, 3)
    assert names["mu"].shape == names["logvar"].shape == (2, names["vae"].latent_dim)
    assert names["again"].shape == (1, 64, 64, 3)
    assert names["between"].shape == (8, 64, 64, 3)
    assert names["bolder"].shape == (1, 64, 64, 3)
    assert names["oddity"].shape == (2,)
    assert names["z"].shape == (1, names["vae"].latent_dim)
    assert names["whole"].shape == names["large"].shape == (1, 64, 64, 3)


def run_app(name: str, *arguments: str, code: str = "") -> str:
    """What an example of "Use it in your app" prints, run as a file of its own."""
    Path(name).write_text(APPS[name] + code, encoding="utf-8")
    done = subprocess.run([sys.executable, name, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_finds_the_same_face(place):
    printed = run_app("alike.py", "me.png", "faces").splitlines()
    assert len(printed) == 3
    assert printed[0].split() == ["0.000", str(Path("faces", "me.png"))]


def test_the_server_answers(place):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    code = """
from fastapi.testclient import TestClient
client = TestClient(app)
for answer in (
    client.get("/sample?seed=3"),
    client.post("/reconstruct", content=open("me.png", "rb").read()),
    client.post("/reconstruct", content=b"no picture"),
):
    size = Image.open(io.BytesIO(answer.content)).size if answer.status_code == 200 else answer.json()["detail"]
    print(answer.status_code, size)
"""
    first, second, refused = run_app("server.py", code=code).splitlines()
    assert first == second == "200 (64, 64)"
    assert refused.startswith("422 images[0]: bytes: not a picture")


def test_the_video_loop_writes_as_many_frames(place):
    cv2 = pytest.importorskip("cv2")
    frames = [np.asarray(Image.open("me.png").resize((64, 48)))] * 4
    save_animation(frames, "in.webm")
    run_app("mirror.py", "in.webm", "out.webm")
    video = cv2.VideoCapture("out.webm")
    read = [video.read() for _ in range(5)]
    assert [more for more, _ in read] == [True] * 4 + [False]
    assert read[0][1].shape == (256, 512, 3)


SLOW = ("python -m benchmarks", "python -m vae_runtime invert", "python -m vae_runtime inpaint")


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=[pytest.mark.slow] if line.startswith(SLOW) else []) for line in PLAY]
)
def test_the_runtime_commands_run(line, place):
    arguments = shlex.split(line) + (["--seconds", "0.1", "--batches", "1"] if "benchmarks" in line else [])
    done = subprocess.run([sys.executable, *arguments[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "-o" in arguments and not arguments[-1].endswith(".npy"):
        with Image.open(arguments[arguments.index("-o") + 1]) as picture:
            assert min(picture.size) > 30


def test_there_is_something_to_run():
    assert list(APPS) == ["alike.py", "server.py", "mirror.py"]
    assert len(PLAY) == 11


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
