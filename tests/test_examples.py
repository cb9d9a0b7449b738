"""The programs in examples/, run as a user runs them."""

from __future__ import annotations

import ast
import io
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import DIM

from vae_runtime import VAE, save_animation

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_models_of_the_hub_stay_addresses(monkeypatch):
    """Without Ray: only the function is taken out of the example."""
    source = (EXAMPLES / "encode_on_ray.py").read_text(encoding="utf-8")
    (node,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == "for_every_machine"]
    names = {"os": os}
    exec(compile(ast.Module([node], []), "encode_on_ray.py", "exec"), names)
    find = names["for_every_machine"]
    assert (find(None), find("hf:owner/name@main")) == (None, "hf:owner/name@main")
    assert find("model") == os.path.abspath("model")


def run_example(name: str, *arguments: object, model: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / name, *arguments, "--model", model]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


@pytest.fixture
def faces(tmp_path, rng):
    """20 pictures, two of them also resized, one that is broken."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for index in range(20):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        picture = small.resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:02d}.png")
        if index < 2:
            picture.resize((48, 48)).save(folder / f"copy{index}.jpg", quality=95)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_alike_finds_the_copy(tiny, faces):
    done = run_example("alike.py", faces / "00.png", faces, "--count", 2, model=tiny.folder)
    assert done.returncode == 0, done.stderr
    found = [Path(line.split("  ")[1]).name for line in done.stdout.splitlines()]
    assert found == ["00.png", "copy0.jpg"]
    empty = faces.parent / "empty"
    empty.mkdir()
    assert "no pictures" in run_example("alike.py", faces / "00.png", empty, model=tiny.folder).stderr
    missing = run_example("alike.py", "none.png", faces, model=tiny.folder)
    assert missing.stderr.splitlines() == ["none.png: no such file"]


def test_near_duplicates_are_grouped(tiny, faces):
    done = run_example("near_duplicates.py", faces, "--threshold", 0.999, model=tiny.folder)
    assert done.returncode == 0, done.stderr
    groups = [{Path(name).name for name in line.split("  ")} for line in done.stdout.splitlines()]
    assert groups == [{"00.png", "copy0.jpg"}, {"01.png", "copy1.jpg"}]
    assert "broken.png" in done.stderr


def test_the_server_answers_with_pictures_and_names_no_file(tiny, faces, monkeypatch):
    testclient = pytest.importorskip("fastapi.testclient")
    pytest.importorskip("multipart")
    monkeypatch.setenv("MODEL", str(tiny.folder))
    client = testclient.TestClient(runpy.run_path(str(EXAMPLES / "server.py"))["app"])

    def upload(*names: str):
        return client.post("/reconstruct", files=[("files", (name, (faces / name).read_bytes())) for name in names])

    for answer in (client.get("/sample?count=4&seed=3"), upload("00.png", "01.png")):
        assert answer.status_code == 200
        assert Image.open(io.BytesIO(answer.content)).format == "PNG"
    refused = upload("00.png", "broken.png")
    assert refused.status_code == 422
    (sentence,) = refused.json()["detail"]
    assert sentence.startswith("picture 2: not a picture")
    assert "broken" not in refused.text
    assert client.get("/sample?count=0").status_code == 422
    assert upload(*["00.png"] * 17).status_code == 413


def test_the_mirror_writes_as_many_frames(tiny, faces, tmp_path):
    cv2 = pytest.importorskip("cv2")
    with Image.open(faces / "00.png") as face:
        save_animation([np.asarray(face.resize((64, 48)))] * 4, tmp_path / "in.webm")
    done = run_example("mirror.py", tmp_path / "in.webm", tmp_path / "out.webm", "--side", 64, model=tiny.folder)
    assert done.returncode == 0, done.stderr
    video = cv2.VideoCapture(str(tmp_path / "out.webm"))
    read = [video.read() for _ in range(5)]
    assert [more for more, _ in read] == [True] * 4 + [False]
    assert read[0][1].shape == (64, 128, 3)
    assert "OpenCV" in run_example("mirror.py", "none.webm", "out.webm", model=tiny.folder).stderr
    same = run_example("mirror.py", tmp_path / "in.webm", tmp_path / "in.webm", model=tiny.folder)
    assert "is the source" in same.stderr


def test_an_avatar_is_the_face_of_a_name(tiny, tmp_path):
    for name in ("Ada", "ada", "Grace"):
        done = run_example("avatar.py", name, "-o", tmp_path / f"{name}.png", "--side", 32, model=tiny.folder)
        assert done.returncode == 0, done.stderr
    ada, again, grace = ((tmp_path / f"{name}.png").read_bytes() for name in ("Ada", "ada", "Grace"))
    assert ada == again != grace
    with Image.open(tmp_path / "Ada.png") as face:
        assert face.size == (32, 32)
    for wrong in (("-o", tmp_path / "none" / "ada.png"), ("-o", tmp_path / "side.png", "--side", 0)):
        refused = run_example("avatar.py", "Ada", *wrong, model=tiny.folder)
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason='ray is not installed; pip install "ray[data]"')
def test_ray_gives_the_codes_of_one_machine(tiny, tmp_path, rng):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "faces").mkdir()
    for index in range(70):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "faces" / f"{index}.png")
    (tmp_path / "faces" / "broken.png").write_bytes(b"no picture")
    command = [sys.executable, "encode_on_ray.py", tmp_path / "faces", tmp_path / "codes"]
    # No network, no home, and little shared memory, as in a container.
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1"}
    done = subprocess.run(
        [*command, "--workers", "2", "--model", tiny.folder],
        cwd=EXAMPLES,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "broken.png: not a picture" in done.stdout + done.stderr
    table = parquet.read_table(tmp_path / "codes")
    paths = table["path"].to_pylist()
    assert {Path(path).name for path in paths} == {f"{index}.png" for index in range(70)}
    for name, wanted in zip(("mu", "logvar"), VAE.load(tiny.folder, device="cpu").encode(paths), strict=True):
        found = np.array(table[name].to_pylist(), np.float32)
        assert found.shape == (70, DIM)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
