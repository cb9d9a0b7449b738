from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hub_stand_in import hub
from PIL import Image

from vae_runtime import find_images
from vae_runtime.images import fit_square, load_image
from vae_train.data import faces as data
from vae_train.data import sources
from vae_train.data.faces import Faces, load_faces
from vae_train.data.sources import check_outside, check_source
from vae_train.errors import DataError, UsageError


def picture(seed: int, side: int = 40, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIME_VAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """120 pictures in nested folders, of mixed sizes, modes and formats, beside files that are none."""
    root = tmp_path / "faces"
    for index in range(120):
        kind = ("PNG", "JPEG", "WEBP", "BMP")[index % 4]
        path = root / f"sub {index % 3}" / f"{index:03d}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(index, 20 + index % 30, kind))
    Image.new("L", (50, 30), 77).save(root / "grey.png")
    Image.new("RGBA", (30, 50), (1, 2, 3, 0)).save(root / "clear.PNG")
    (root / "no_ending").write_bytes(picture(500))
    (root / "notes.txt").write_text("BMW: not a face")
    (root / ".DS_Store").write_bytes(b"\0\0")
    (root / "._000.png").write_bytes(b"\0\5\x16\7")
    return root


def entries(cache: Path) -> list[Path]:
    """What lies in the cache, beside the locks."""
    return [path for path in cache.iterdir() if not path.name.startswith(".")]


def test_a_folder_passes_the_funnel_of_the_runtime(folder):
    faces = load_faces(str(folder), 16)
    assert faces.pixels.shape == (123, 3, 16, 16)
    assert faces.pixels.dtype == np.uint8
    assert (faces.name, len(faces.skipped), faces.unreadable, faces.duplicates) == ("faces", 3, [], 0)
    paths = sorted(
        (
            path
            for path in folder.rglob("*")
            if path.is_file() and path.name not in ("notes.txt", ".DS_Store", "._000.png")
        ),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    wanted = {fit_square(load_image(path), 16).transpose(2, 0, 1).tobytes() for path in paths}
    assert {face.tobytes() for face in faces.pixels} == wanted


def pack(folder: Path, kind: str) -> Path:
    target = folder.parent / f"faces.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
        return target
    with tarfile.open(target, "w:" + kind.partition(".")[2]) as archive:
        archive.add(folder, "faces")
    return target


def test_one_walker_decides_what_a_picture_is(folder):
    for name in ("a.jfif", "b.JPE", "c.tiff", "d"):
        (folder / name).write_bytes(picture(hash(name) % 100, kind="TIFF" if name == "c.tiff" else "JPEG"))
    found = find_images(folder)
    wanted = [path.relative_to(folder).as_posix() for path in found]
    faces = load_faces(str(folder), 8)
    unreadable = [line.partition(": ")[0] for line in faces.unreadable]
    assert sorted([name.removeprefix("faces/") for name in faces.names] + unreadable) == sorted(wanted)
    assert len(faces.skipped) == len(found.skipped)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_archives_hold_the_same_faces(folder, kind):
    inside = load_faces(str(pack(folder, kind)), 16)
    outside = load_faces(str(folder), 16)
    assert len(inside.skipped) == 3
    assert {face.tobytes() for face in inside.pixels} == {face.tobytes() for face in outside.pixels}
    keys = {key.tobytes() for key in outside.keys[outside.held_out()]}
    assert {key.tobytes() for key in inside.keys[inside.held_out()]} == keys


def test_the_second_time_is_a_memory_map(folder, cache, monkeypatch):
    first = load_faces(str(folder), 16)
    monkeypatch.setattr(data, "load_image", None)  # decoding anything would fail now
    second = load_faces(str(folder), 16)
    assert isinstance(second.pixels, np.memmap)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.keys, second.keys)
    assert (first.sha256, first.skipped) == (second.sha256, second.skipped)
    assert len(entries(cache)) == 1


def test_the_cache_knows_content_and_size(folder, cache):
    load_faces(str(folder), 16)
    assert load_faces(str(folder), 8).pixels.shape[2:] == (8, 8)
    (folder / "new.png").write_bytes(picture(900))
    assert len(load_faces(str(folder), 16)) == 124
    (folder / "new.png").write_bytes(picture(901))
    changed = load_faces(str(folder), 16)
    expected = fit_square(load_image(picture(901)), 16).transpose(2, 0, 1)
    assert any((face == expected).all() for face in changed.pixels)
    assert len(entries(cache)) == 4


@pytest.mark.parametrize("damage", ["pixels.u8", "keys.npy", "meta.json"])
def test_a_damaged_cache_is_made_again(folder, cache, damage):
    first = np.array(load_faces(str(folder), 16).pixels)
    path = entries(cache)[0] / damage
    path.write_bytes(path.read_bytes()[:-100])
    np.testing.assert_array_equal(load_faces(str(folder), 16).pixels, first)


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ANIME_VAE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="set ANIME_VAE_CACHE"):
        load_faces(str(folder), 8)


BROKEN = {
    "truncated.png": picture(1)[:300],
    "empty.jpg": b"",
    "text.jpg": b"I am not a face",
    "page.png": b"<html></html>",
    "noise.webp": bytes(range(256)),
}


def add_good(root: Path, count: int) -> None:
    for index in range(count):
        (root / f"more{index}.bmp").write_bytes(picture(1000 + index, 6, "BMP"))


def test_one_percent_of_broken_pictures_is_listed_and_left_out(folder):
    add_good(folder, 400)
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)
    faces = load_faces(str(folder), 8)
    assert len(faces) == 523
    assert sorted(line.split(":")[0] for line in faces.unreadable) == sorted(BROKEN)
    assert "empty" in next(line for line in faces.unreadable if line.startswith("empty.jpg"))
    assert load_faces(str(folder), 8).unreadable == faces.unreadable  # from the cache too


def test_more_than_one_percent_stops_the_run(folder, cache):
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"5 of 128 pictures cannot be read, more than 1%.*truncated\.png"):
        load_faces(str(folder), 8)
    assert entries(cache) == []
    assert not list(cache.glob(".filling*"))


def test_broken_members_of_an_archive_are_listed(folder, tmp_path):
    add_good(folder, 200)
    archive = pack(folder, "zip")
    raw = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        member = file.getinfo("more7.bmp")
    raw[member.header_offset + 40 + len(member.filename)] ^= 0xFF
    archive.write_bytes(raw)
    faces = load_faces(str(archive), 8)
    assert [line.split(":")[0] for line in faces.unreadable] == ["more7.bmp"]
    assert len(faces) == 322


def test_copies_never_straddle_the_split(folder):
    copies = [path for path in folder.rglob("*.png") if not path.name.startswith("._")]
    for index, path in enumerate(copies):
        (folder / f"copy{index}.png").write_bytes(path.read_bytes())
        with Image.open(path) as image:  # the same pixels in another file format
            image.save(folder / f"other{index}.bmp" if image.mode == "RGB" else folder / f"other{index}.png")
    faces = load_faces(str(folder), 16)
    assert faces.duplicates >= len(copies) * 2 - 2
    held_out = faces.held_out()
    inside = {key.tobytes() for key in faces.keys[held_out]}
    assert inside
    assert inside.isdisjoint({key.tobytes() for key in faces.keys[~held_out]})
    distinct = len(np.unique(faces.keys, axis=0))
    assert len(inside) == round(0.05 * distinct)


def test_the_split_is_the_same_at_every_size_and_in_every_order(folder, tmp_path):
    small, large = load_faces(str(folder), 8), load_faces(str(folder), 32)
    np.testing.assert_array_equal(small.held_out(), large.held_out())
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for index, path in enumerate(sorted(folder.rglob("*"), reverse=True)):
        if path.is_file():
            (renamed / f"{index:04d}{path.suffix}").write_bytes(path.read_bytes())
    other = load_faces(str(renamed), 8)
    assert {k.tobytes() for k in other.keys[other.held_out()]} == {k.tobytes() for k in small.keys[small.held_out()]}


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture(7777))
    before = len(load_faces(str(folder), 8))
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    (folder / "dangling.png").symlink_to(outside / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "fifo.png")
    faces = load_faces(str(folder), 8)
    assert (len(faces), len(faces.skipped)) == (before, 3 + 4 + hasattr(os, "mkfifo"))
    assert sum("link" in line for line in faces.skipped) == 4


def test_archives_write_nothing_to_the_disk(tmp_path):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as file:
        for name in ("../../escape.png", "/abs.png", "good.png"):
            content = picture(hash(name) % 1000)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    before = set(tmp_path.rglob("*"))
    faces = load_faces(str(archive), 8)
    assert (len(faces), len(faces.skipped)) == (3, 1)
    outside = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert outside == before


def test_a_zip_bomb_is_one_unreadable_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 2**20)
    monkeypatch.setattr("vae_runtime.images.MAX_BYTES", 2**20)
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.png", b"\x89PNG\r\n\x1a\n" + bytes(50 * 2**20))
        for index in range(120):
            file.writestr(f"{index}.png", picture(index, 5))
    assert [line.split(":")[0] for line in load_faces(str(archive), 8).unreadable] == ["bomb.png"]


def write_parquet(path: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": picture(3000 + index), "path": f"{index}.png"} for index in range(count)]
    table = pa.table({"label": list(range(count)), "image": pa.array(images)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


HUB_CODE = """
import sys
from vae_train.data.faces import Faces, load_faces
faces = load_faces(sys.argv[1], 16)
print(len(faces), faces.name, len(faces.skipped), len(faces.unreadable), faces.sha256)
"""


def load_from_hub(env: dict[str, str], address: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: huggingface_hub reads its endpoint from the environment when it is imported.
    return subprocess.run([sys.executable, "-c", HUB_CODE, address], env=env, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["images", "parquet", "zip"])
def test_a_data_set_of_the_hub(tmp_path, form):
    """Through the real huggingface_hub client, against a local stand-in of the Hub's HTTP interface; then offline."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "README.md").write_text("card")
    if form == "images":
        for index in range(30):
            (served / f"train/{index % 2}").mkdir(parents=True, exist_ok=True)
            (served / f"train/{index % 2}/{index}.{'PNG' if index % 2 else 'png'}").write_bytes(picture(3000 + index))
    elif form == "parquet":
        write_parquet(served / "data" / "train-00000-of-00001.parquet", 30)
    else:
        with zipfile.ZipFile(served / "data.zip", "w") as archive:
            for index in range(30):
                archive.writestr(f"images/{index}.png", picture(3000 + index))
    env = {
        "PATH": os.environ["PATH"],
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "ANIME_VAE_CACHE": os.environ["ANIME_VAE_CACHE"],
    }
    with hub("datasets", "someone/faces", served) as (endpoint, log):
        online = load_from_hub(env | {"HF_ENDPOINT": endpoint}, "hf:someone/faces")
        assert online.stdout.startswith("30 hf:someone/faces 0 0 "), online.stderr
        assert not any("README" in line for line in log)
        missing = load_from_hub(env | {"HF_ENDPOINT": endpoint}, "hf:someone/nothing")
        assert "HubError: hf:someone/nothing: the dataset cannot be fetched" in missing.stderr
    offline = load_from_hub(env | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "1"}, "hf:someone/faces")
    assert offline.stdout == online.stdout, offline.stderr


def test_several_sources_are_one_set(folder, tmp_path, cache):
    more = tmp_path / "more"
    more.mkdir()
    for index in range(60):
        (more / f"{index}.png").write_bytes(picture(5000 + index))
    archive = pack(folder, "zip")
    both = load_faces([str(archive), str(more)], 8)
    parts = [load_faces(str(archive), 8), load_faces(str(more), 8)]
    assert len(both) == len(both.names) == sum(map(len, parts))
    assert both.name == "faces.zip + more"
    assert {key.tobytes() for key in both.keys} == {key.tobytes() for part in parts for key in part.keys}
    assert int(both.held_out().sum()) == round(0.05 * len(both))
    smallest = sorted(key.tobytes() for key in both.keys)[: round(0.05 * len(both))]
    assert sorted(key.tobytes() for key in both.keys[both.held_out()]) == smallest
    assert isinstance(both.pixels, np.memmap)
    assert len(entries(cache)) == 3
    swapped = load_faces([str(more), str(archive)], 8)
    assert swapped.sha256 == both.sha256
    np.testing.assert_array_equal(swapped.pixels, both.pixels)


def test_a_source_given_twice_counts_once(folder, tmp_path, capsys):
    archive = pack(folder, "zip")
    once = load_faces(str(archive), 8)
    spelled = os.path.join(str(tmp_path), ".", archive.name)
    twice = load_faces([str(archive), spelled], 8)
    assert (len(twice), twice.sha256) == (len(once), once.sha256)
    assert "used once" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_source_that_moved_is_the_same_data(folder, tmp_path, cache, kind):
    source = folder if kind == "folder" else pack(folder, kind)
    before = load_faces(str(source), 8)
    (tmp_path / "elsewhere").mkdir()
    moved = source.rename(tmp_path / "elsewhere" / f"renamed{source.suffix}")
    after = load_faces(str(moved), 8)
    assert after.matches(before.sha256)
    assert before.matches(after.sha256)
    assert len(entries(cache)) == 1


def test_models_of_version_0_know_an_archive_by_its_name(tmp_path):
    archive = tmp_path / "faces.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("0.png"), picture(0))
    content = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert load_faces(str(archive), 8).matches(hashlib.sha256(f"faces.zip\0{content}\0".encode()).hexdigest())


def test_avatars_are_drawn_once_and_keep_their_labels(cache):
    faces = load_faces("avatars", 32, avatars=100, seed=3)
    assert faces.pixels.shape == (100, 3, 32, 32)
    assert faces.name == "avatars"
    assert {"hair", "hair_color", "skin", "glasses", "beard", "mouth", "clothes"} <= faces.labels.keys()
    assert all(len(values) == 100 for values in faces.labels.values())
    again = load_faces("avatars", 32, avatars=100, seed=3)
    assert again.labels == faces.labels
    np.testing.assert_array_equal(again.pixels, faces.pixels)
    assert len(entries(cache)) == 1
    assert load_faces("avatars", 32, avatars=64, seed=3).sha256 != faces.sha256


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("missing/", "no such file"),
        ("hf:", "hf:owner/name"),
        ("hf:a", "hf:owner/name"),
        ("hf:a/b/c", "hf:owner/name"),
    ],
)
def test_what_is_no_source(source, said):
    with pytest.raises(UsageError, match=said):
        check_source(source)


def test_folders_and_files_without_pictures(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"no pictures in this folder$"):
        check_source(str(empty))
    (empty / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"no pictures in this folder \(1 not a picture: a\.txt\)"):
        check_source(str(empty))
    with pytest.raises(UsageError, match=r"neither a folder nor a \.zip"):
        check_source(str(empty / "a.txt"))
    (tmp_path / "a.zip").write_bytes(b"PK nonsense")
    with pytest.raises(UsageError, match=r"\.zip"):
        check_source(str(tmp_path / "a.zip"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(DataError, match=r"no pictures in it \(1 not a picture: a\.txt\)"):
        load_faces(str(tmp_path / "b.zip"), 8)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("left", [2, -20_000])  # the last 10 kB of a .tar may be padding
def test_truncated_archives_are_refused(folder, kind, left):
    archive = pack(folder, kind)
    archive.write_bytes(archive.read_bytes()[:left])
    with pytest.raises((UsageError, DataError), match="faces"):
        load_faces(str(archive), 8)


def test_a_tar_that_was_cut_between_two_members_is_refused(tmp_path):
    archive = tmp_path / "faces.tar"
    with tarfile.open(archive, "w") as file:
        for index in range(20):
            info = tarfile.TarInfo(f"{index}.png")
            content = picture(index)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    with tarfile.open(archive) as file:
        cut = file.getmembers()[10].offset
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(DataError, match="cut or damaged"):
        load_faces(str(archive), 8)


def test_folders_that_are_not_read_are_named(folder, tmp_path):
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "000.png").write_bytes(picture(1))
    (folder / ".git").mkdir()
    (tmp_path / "more").mkdir()
    (folder / "more").symlink_to(tmp_path / "more")
    skipped = load_faces(str(folder), 8).skipped
    assert {"__MACOSX: hidden", ".git: hidden", "more: a linked folder, not followed"} <= set(skipped)


def test_a_folder_that_may_not_be_read_is_named(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("sub 1"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    faces = load_faces(str(folder), 8)
    assert len(faces) == 83
    assert "sub 1: a folder that cannot be listed (Permission denied)" in faces.skipped


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_names_of_any_encoding(tmp_path, kind):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        root.mkdir()
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    for index in range(12):
        (root / os.fsdecode(b"\xff%d.png" % index)).write_bytes(picture(index))
    (root / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    add_good(root, 120)
    source = root
    if kind == "tar":
        source = tmp_path / os.fsdecode(b"caf\xe9.tar")
        with tarfile.open(source, "w") as archive:
            archive.add(root, "faces")
    elif kind == "zip":
        source = tmp_path / os.fsdecode(b"caf\xe9.zip")
        with zipfile.ZipFile(source, "w") as archive:
            for path in root.iterdir():
                archive.writestr(path.name.encode("utf-8", "replace").decode(), path.read_bytes())
    faces = load_faces(str(source), 8)
    assert len(faces) == 132
    assert len(faces.unreadable) == 1
    for text in [faces.name, *faces.names, *faces.unreadable, *faces.skipped]:
        text.encode("utf-8")
    json.dumps(load_faces([str(source), str(source)], 8).names)


def test_too_few_different_pictures_are_found_before_training(tmp_path):
    def faces(contents: list[bytes]) -> Faces:
        path = tmp_path / "faces.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for index, content in enumerate(contents):
                archive.writestr(f"{index}.png", content)
        return load_faces(str(path), 8)

    faces([picture(index) for index in range(40)]).check_trainable(32)
    with pytest.raises(DataError, match=r"40 pictures.*fewer than one batch of 64"):
        faces([picture(index) for index in range(40)]).check_trainable(64)
    with pytest.raises(DataError, match=r"200 pictures, 1 different"):
        faces([picture(0)] * 200).check_trainable(32)
    equal_when_resized = []
    for index in range(40):
        pixels = np.full((80, 80, 3), 128, np.uint8)
        pixels[0, 0] = 127 + index % 3, index, 1
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        equal_when_resized.append(buffer.getvalue())
    with pytest.raises(DataError, match="differ at 8x8"):
        faces(equal_when_resized).check_trainable(32)


def test_what_is_written_may_not_lie_inside_the_data(folder, tmp_path, monkeypatch):
    for inside in (folder, folder / "runs" / "one", tmp_path / "link" / "run"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(folder)
        with pytest.raises(UsageError, match="--out"):
            check_outside(inside, ["avatars", str(folder)], "--out")
    check_outside(tmp_path / "run", [str(folder), str(pack(folder, "zip")), "hf:owner/name"], "--out")
    monkeypatch.setenv("ANIME_VAE_CACHE", str(folder / "cache"))
    with pytest.raises(UsageError, match="ANIME_VAE_CACHE"):
        load_faces(str(folder), 8)


def test_what_a_killed_process_left_in_the_cache_is_removed(folder, cache):
    load_faces(str(folder), 8)
    dead, alive = "0" * 32 + "-8-v2", "1" * 32 + "-8-v2"
    for entry in (dead, alive):
        (cache / f".filling-{entry}.abcdef").mkdir()
    with FileLock(cache / f".{alive}.lock"):
        load_faces(str(folder), 16)
    assert [path.name for path in cache.glob(".filling-*")] == [f".filling-{alive}.abcdef"]


def test_a_process_that_waits_for_the_cache_says_so(folder, cache, monkeypatch):
    load_faces(str(folder), 8)
    (lock,) = cache.glob(".*.lock")
    shutil.rmtree(entries(cache)[0])
    said = threading.Event()

    class Messages(io.StringIO):
        """Unlike what pytest captures, nothing is lost that another thread writes while this one reads."""

        def write(self, text):
            if "waiting for another process" in text:
                said.set()
            return super().write(text)

    monkeypatch.setattr("vae_train.data.cache._WAIT", 0.05)
    monkeypatch.setattr(sys, "stderr", Messages())
    with ThreadPoolExecutor(1) as pool:
        with FileLock(lock):
            waiting = pool.submit(load_faces, str(folder), 8)
            assert said.wait(60)
            assert not waiting.done()
        assert len(waiting.result()) == 123


def test_a_disk_without_locks(folder, monkeypatch):
    def acquire(*_args, **_settings):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("vae_train.data.cache.FileLock.acquire", acquire)
    assert len(load_faces(str(folder), 8)) == 123


def test_a_full_disk_is_one_sentence(folder, cache, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vae_train.data.cache.Writer.add", full)
    with pytest.raises(DataError, match="No space left on device"):
        load_faces(str(folder), 8)
    assert not entries(cache)


def test_of_processes_that_want_the_same_set_one_decodes(folder, cache, monkeypatch):
    decoded = []
    real = data.load_image
    monkeypatch.setattr(data, "load_image", lambda image: decoded.append(1) or real(image))
    with ThreadPoolExecutor(4) as pool:
        sets = list(pool.map(lambda _: load_faces(str(folder), 8), range(4)))
    assert len(decoded) == len(sets[0])
    assert all(np.array_equal(one.pixels, sets[0].pixels) for one in sets)
