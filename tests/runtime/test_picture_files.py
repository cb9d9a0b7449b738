"""Which files are pictures: one walker for encoding and for training."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vae_runtime import find_images, picture_files
from vae_runtime.picture_files import looks_like_picture, walk_files

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


@pytest.fixture
def folder(tmp_path):
    """Pictures by name and by signature, hidden files, links, and a text."""
    root = tmp_path / "faces"
    for name in ("b.PNG", "a/z.jfif", "a/y.jpe", "a/x", "c/photo.HEIC"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    for name in ("__MACOSX/b.PNG", ".thumbs/b.png", "._b.PNG", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"text")
    return root


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found]


def test_pictures_are_found_by_ending_or_signature_in_the_order_of_their_names(folder):
    found = find_images(folder)
    assert names(found, folder) == ["b.PNG", "a/x", "a/y.jpe", "a/z.jfif", "c/photo.HEIC"]
    assert names(found, folder) == names(find_images([folder]), folder)


def test_what_is_passed_over_is_named_with_the_reason(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.png").write_bytes(PNG)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "broken.png").symlink_to(tmp_path / "nowhere")
    (folder / "e.png").symlink_to(tmp_path / "elsewhere" / "d.png")
    found = find_images(folder)
    assert "e.png" in names(found, folder)
    reasons = {Path(line.rpartition(": ")[0]).name: line.rpartition(": ")[2] for line in found.skipped}
    assert reasons.keys() == {"__MACOSX", ".thumbs", "._b.PNG", "notes.txt", "linked", "broken.png"}
    assert "link" in reasons["linked"]
    assert "link" in reasons["broken.png"]
    problems = {entry.name: entry.problem for entry in walk_files(folder, within=folder.resolve())}
    assert "out of the folder" in problems["e.png"]
    assert problems["b.PNG"] == ""


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(picture_files.os, "scandir", refuse)
    found = find_images(folder)
    assert names(found, folder) == ["b.PNG", "c/photo.HEIC"]
    (line,) = [line for line in found.skipped if line.startswith(f"{folder / 'a'}: ")]
    assert "cannot be listed" in line


def test_a_folder_in_two_spellings_is_one(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    once = list(find_images("faces"))
    assert once == list(find_images(["faces", "./faces/", folder, "faces/../faces", "faces/a", "link", "faces/b.PNG"]))
    assert list(find_images(["./faces", "faces/a"], known=map(str, once[:3]))) == once[3:]


def test_loops_of_links_and_deep_folders_end(folder):
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    deep = folder / "deep"
    for _ in range(300):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "p.png").write_bytes(PNG)
    assert len(list(find_images(folder))) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(path)
    with open(path + b"/\xff.png", "wb") as file:
        file.write(PNG)
    (found,) = find_images(tmp_path)
    assert os.fsencode(found) == path + b"/\xff.png"


@pytest.mark.parametrize(
    ("head", "expected"),
    [(b"RIFF\0\0\0\0WEBP", True), (b"\0\0\0\x20ftypavif", True), (b"\0\0\0\x20ftypisom", False), (b"", False)],
)
def test_signatures(head, expected):
    assert looks_like_picture("face", head) is expected
    assert not looks_like_picture("__MACOSX/face.png", head)
