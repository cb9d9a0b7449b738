"""Faces out of pictures. The detector itself is tried where its package is installed."""

from __future__ import annotations

import io
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vae_train.__main__ import main
from vae_train.data import crop as crop_module
from vae_train.data.crop import MARGIN, Box, crop, describe, find_faces, load_detector
from vae_train.errors import UsageError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "art"
    (root / "sub").mkdir(parents=True)
    picture(400, 300, 0).save(root / "a.png")
    picture(400, 300, 1).save(root / "a.jpg")
    picture(300, 400, 2).save(root / "sub" / "b.png")
    (root / "broken.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("text")
    return root


def test_the_square_around_a_face_is_cut_and_lies_inside(folder, tmp_path):
    boxes = [Box(100, 80, 80, 1.0), Box(330, 10, 60, 0.9), Box(0, 0, 20, 0.8)]
    done = crop(str(folder), tmp_path / "faces", lambda picture: boxes)
    names = {path.relative_to(tmp_path / "faces").as_posix() for path in done.faces}
    assert names == {f"{stem}.png" for stem in ("a", "a-2", "a-3", "a-4", "sub/b", "sub/b-2")}
    with Image.open(folder / "a.png") as whole, Image.open(tmp_path / "faces" / "a-3.png") as first:
        side = round(80 * MARGIN)
        left, top = round(100 - (side - 80) / 2), round(80 - (side - 80) / 2)
        np.testing.assert_array_equal(first, np.asarray(whole)[top : top + side, left : left + side])
    with Image.open(tmp_path / "faces" / "a-2.png") as second:
        assert second.size == (round(60 * MARGIN),) * 2
    assert {line.partition(":")[0] for line in done.skipped} == {"broken.png", "notes.txt"}
    assert done.sheet is not None
    assert done.sheet.parent == tmp_path
    assert "6 faces from 3 pictures" in describe(done, tmp_path / "faces")


def test_small_faces_and_pictures_without_one_are_named(folder, tmp_path):
    done = crop(
        str(folder), tmp_path / "faces", lambda picture: [Box(0, 0, 20, 1.0)] if picture.shape[0] == 400 else []
    )
    assert done.faces == []
    reasons = dict(line.split(": ", 1) for line in done.skipped)
    assert "64 pixels" in reasons["sub/b.png"]
    assert "no face" in reasons["a.png"]


def test_without_a_detector_the_center_is_cut(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(crop_module, "load_detector", lambda: None)
    assert main(["crop", str(folder), "--out", str(tmp_path / "faces")]) == 0
    assert "3 faces from 3 pictures" in capsys.readouterr().out
    with Image.open(tmp_path / "faces" / "sub" / "b.png") as face:
        assert face.size == (256, 256)


def test_the_package_is_named_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "animeface", None)
    assert load_detector() is None
    assert "animeface" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["art/faces", "full"])
def test_folders_that_would_be_spoiled_are_refused(folder, tmp_path, out):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(UsageError, match="--out"):
        crop(str(folder), tmp_path / out, None)


@pytest.mark.parametrize("source", ["avatars", "missing/"])
def test_sources_that_are_none_are_refused(source, tmp_path):
    with pytest.raises(UsageError, match=f"^{source}"):
        crop(source, tmp_path / "faces", None)


def test_names_in_an_archive_do_not_leave_the_folder(tmp_path):
    buffer = io.BytesIO()
    picture(100, 100).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../up.png", buffer.getvalue())
        archive.writestr("/abs.png", buffer.getvalue())
    done = crop(str(tmp_path / "a.zip"), tmp_path / "faces", None)
    assert {path.relative_to(tmp_path / "faces").as_posix() for path in done.faces} == {"up.png", "abs.png"}


def test_faces_found_at_two_sizes_are_one():
    def detect(memory):
        scale = memory.xsize / 1600
        return [{"face_box": (round(400 * scale), round(200 * scale), round(300 * scale), 0), "likelihood": scale}]

    (box,) = find_faces(np.zeros((1200, 1600, 3), np.uint8), detect)
    np.testing.assert_allclose(box, (400, 200, 300, 1), atol=2)


def test_a_square_around_a_found_face_is_no_other_face():
    likely = {(600, 300, 100): 0.9, (450, 200, 400): 0.6, (100, 100, 100): 0.5, (160, 160, 100): 0.4}

    def detect(memory):
        return [{"face_box": (*box, 0), "likelihood": each} for box, each in likely.items() if memory.xsize == 1600]

    found = find_faces(np.zeros((1200, 1600, 3), np.uint8), detect)
    assert [tuple(box)[:3] for box in found] == [(600, 300, 100), (100, 100, 100), (160, 160, 100)]


def drawn_face() -> Image.Image:
    """Crude, but with what the detector looks for: hair, a pale face, large dark eyes, a mouth."""
    scale = 4
    image = Image.new("RGB", (240 * scale, 240 * scale), (170, 200, 230))
    draw = ImageDraw.Draw(image)

    def ellipse(x: int, y: int, width: int, height: int, color: tuple[int, int, int]) -> None:
        box = [(x - width) * scale, (y - height) * scale, (x + width) * scale, (y + height) * scale]
        draw.ellipse(box, color, (40, 20, 20), scale)

    ellipse(120, 110, 52, 56, (90, 60, 140))
    ellipse(120, 124, 38, 40, (255, 228, 210))
    draw.pieslice([v * scale for v in (78, 62, 162, 146)], 180, 360, (90, 60, 140))
    for x in (103, 137):
        ellipse(x, 126, 10, 13, (255, 255, 255))
        ellipse(x, 128, 8, 11, (40, 50, 110))
        ellipse(x - 2, 123, 3, 3, (255, 255, 255))
    draw.line([v * scale for v in (114, 151, 126, 151)], (150, 60, 60), 2 * scale)
    return image.resize((240, 240), Image.Resampling.LANCZOS)


@pytest.mark.skipif(find_spec("animeface") is None, reason="animeface is not installed")
def test_the_detector_reads_the_picture_it_is_given():
    detector = load_detector()
    assert detector is not None
    (box,) = detector(np.asarray(drawn_face()))
    assert abs(box.left + box.side / 2 - 120) < 12
    assert abs(box.top + box.side / 2 - 124) < 20
    assert not detector(np.asarray(picture(200, 200)))
