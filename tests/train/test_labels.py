"""Labels: tables inside and beside a source, on the command line, and folders of classes."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_runtime.config import DIRECTIONS_FILE
from vae_runtime.directions import Directions
from vae_train.__main__ import main
from vae_train.data.faces import load_faces
from vae_train.data.labels import keep_labels, parse_table
from vae_train.errors import DataError, UsageError

NAMES = [f"{index:02d}.png" for index in range(24)]
HAIR = {name: ("red", "blue", None)[index % 3] for index, name in enumerate(NAMES)}
ROWS = [{"file_name": n, "hair": HAIR[n], "id": f"{i}", "tall": i % 2 == 0} for i, n in enumerate(NAMES)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIME_VAE_CACHE", str(tmp_path / "cache"))


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def as_csv(prefix: str = "") -> bytes:
    lines = [f"{prefix}{row['file_name']},{row['hair'] or ''},{row['id']},{row['tall']}" for row in ROWS]
    return "\ufefffile_name,hair,id,tall\r\n".encode() + "\r\n".join(lines).encode()


def as_jsonl(prefix: str = "") -> bytes:
    return "\n".join(json.dumps(row | {"file_name": prefix + str(row["file_name"])}) for row in ROWS).encode()


def write(source: Path, files: dict[str, bytes]) -> Path:
    if source.suffix == ".zip":
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif source.suffix == ".tar":
        with tarfile.open(source, "w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
    return source


def pictures(names: list[str], prefix: str = "") -> dict[str, bytes]:
    return {prefix + name: picture(index) for index, name in enumerate(names)}


def hair_of(faces) -> dict[str, str | None]:
    return {name.rpartition("/")[2]: value for name, value in zip(faces.names, faces.labels["hair"], strict=True)}


@pytest.mark.parametrize("kind", ["faces", "faces.zip", "faces.tar"])
@pytest.mark.parametrize(("file", "table"), [("metadata.csv", as_csv()), ("metadata.jsonl", as_jsonl())])
def test_a_table_inside_a_source(tmp_path, kind, file, table):
    source = write(tmp_path / kind, pictures(NAMES, "train/") | {f"train/{file}": table})
    for _ in range(2):  # decoded, and from the cache
        faces = load_faces(str(source), 8)
        assert set(faces.labels) == {"hair", "tall"}
        assert hair_of(faces) == HAIR
        assert [line.partition(":")[0] for line in faces.ignored] == ["id"]
        assert faces.skipped == []
        assert "16 of 24" not in faces.describe_labels()
        assert "hair (2 values)" in faces.describe_labels()


@pytest.mark.parametrize(("kind", "prefix"), [("faces", "faces/"), ("faces.zip", "")])
def test_a_table_beside_a_source(tmp_path, kind, prefix):
    source = write(tmp_path / kind, pictures(NAMES))
    (tmp_path / "metadata.csv").write_bytes(as_csv(prefix))
    assert hair_of(load_faces(str(source), 8)) == HAIR


def test_a_changed_table_is_read_again_and_is_the_same_data(tmp_path):
    source = write(tmp_path / "faces", pictures(NAMES) | {"metadata.csv": as_csv()})
    before = load_faces(str(source), 8)
    (source / "metadata.csv").write_bytes(as_csv().replace(b"red", b"green"))
    after = load_faces(str(source), 8)
    assert set(after.labels["hair"]) == {"green", "blue", None}
    assert after.sha256 == before.sha256


def test_a_file_of_labels_for_several_sources(tmp_path):
    first = write(tmp_path / "first.zip", pictures(NAMES[:12]))
    second = write(tmp_path / "second.zip", {n: picture(i + 100) for i, n in enumerate(NAMES[12:])})
    (tmp_path / "labels.csv").write_bytes(as_csv())
    faces = load_faces([str(first), str(second)], 8, labels=str(tmp_path / "labels.csv"))
    assert hair_of(faces) == HAIR
    (tmp_path / "labels.csv").write_bytes(as_csv("other/"))
    with pytest.raises(DataError, match="names none of the 24 pictures"):
        load_faces([str(first), str(second)], 8, labels=str(tmp_path / "labels.csv"))


def test_a_name_that_two_pictures_have_labels_neither(tmp_path):
    first = write(tmp_path / "first.zip", pictures(NAMES))
    second = write(tmp_path / "second.zip", {n: picture(i + 100) for i, n in enumerate(NAMES)})
    (tmp_path / "labels.csv").write_bytes(as_csv("first.zip/"))
    faces = load_faces([str(first), str(second)], 8, labels=str(tmp_path / "labels.csv"))
    for name, value in zip(faces.names, faces.labels["hair"], strict=True):
        assert value == (HAIR[name.partition("/")[2]] if name.startswith("first.zip/") else None)
    (tmp_path / "labels.csv").write_bytes(as_csv())
    with pytest.raises(DataError, match="none"):
        load_faces([str(first), str(second)], 8, labels=str(tmp_path / "labels.csv"))


def test_sets_with_and_without_labels_are_one_set(tmp_path):
    labelled = write(tmp_path / "labelled", pictures(NAMES) | {"metadata.csv": as_csv()})
    plain = write(tmp_path / "plain", {n: picture(i + 100) for i, n in enumerate(NAMES)})
    faces = load_faces([str(labelled), str(plain)], 8)
    for name, value in zip(faces.names, faces.labels["hair"], strict=True):
        assert value == (HAIR[name.rpartition("/")[2]] if name.startswith("labelled/") else None)


def test_columns_of_a_parquet_file(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": picture(index), "path": name} for index, name in enumerate(NAMES)]
    columns = {
        "image": pa.array(images),
        "breed": [index % 2 for index in range(24)],
        "hair": [HAIR[name] for name in NAMES],
        "caption": [f"picture {index}" for index in range(24)],
    }
    features = {"features": {"breed": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    folder = tmp_path / "set" / "data" / "train"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "0.parquet")
    monkeypatch.setattr("vae_train.data.sources.download", lambda *args, **settings: folder)
    faces = load_faces("hf:owner/name", 8)
    assert faces.labels == {"breed": ["cat", "dog"] * 12, "hair": list(HAIR.values())}
    assert [line.partition(":")[0] for line in faces.ignored] == ["caption"]


def test_folders_of_classes_are_a_label(tmp_path):
    files = pictures(NAMES[:12], "train/cat/") | {f"train/dog/{n}": picture(i + 100) for i, n in enumerate(NAMES)}
    faces = load_faces(str(write(tmp_path / "animals", files)), 8)
    assert faces.labels["label"].count("cat") == 12
    assert faces.labels["label"].count("dog") == 24
    single = load_faces(str(write(tmp_path / "numbers", {f"{n}/face.png": picture(i) for i, n in enumerate(NAMES)})), 8)
    assert single.labels == {}


def test_only_newlines_end_a_line_of_json():
    rows = [{"file_name": f"{index}.png", "hair": f"a{end}b"} for index, end in enumerate("\u2028\u2029\x85")]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert parse_table("metadata.jsonl", text.encode()) == {f"{index}.png": {"hair": "a b"} for index in range(3)}


def test_labels_that_cannot_be_printed_are_ignored():
    kept, ignored = keep_labels({"hair": ["a", "b"] * 4, "eyes": ["a", "b\x1b[31m"] * 4, "ha\0t": ["a", "b"] * 4})
    assert list(kept) == ["hair"]
    assert [reason.split(": ")[1] for reason in ignored] == ["the name or a value is not printable"] * 2


@pytest.mark.parametrize("content", [b"name,hair\n0.png,red\n", b"\xff\xfe\0", b"[1]"])
def test_a_file_that_is_no_table(tmp_path, content):
    for file in ("metadata.csv", "metadata.jsonl"):
        with pytest.raises(DataError, match=file):
            parse_table(file, content)
        source = write(tmp_path / file.replace(".", "-"), pictures(NAMES) | {file: content})
        faces = load_faces(str(source), 8)
        assert faces.labels == {}
        assert faces.skipped[0].startswith(f"{file}: not a table of labels")
        (tmp_path / file).write_bytes(content)
        with pytest.raises(UsageError, match="--labels"):
            load_faces(str(source), 8, labels=str(tmp_path / file))
        (tmp_path / file).unlink()
    with pytest.raises(UsageError, match="--labels"):
        load_faces(str(source), 8, labels=str(tmp_path / "missing.csv"))


@pytest.mark.slow
def test_labels_of_a_run_are_directions_of_its_model(faces_zip, tmp_path, capsys):
    kinds = {f"{index}.png": ("red", "blue", "")[index % 3] for index in range(220)}
    table = tmp_path / "labels.csv"
    table.write_text("file_name,hair\n" + "".join(f"{name},{kind}\n" for name, kind in kinds.items()))
    run = tmp_path / "run"
    settings = ["--epochs", "1", "--batch-size", "100", "--latent-dim", "8", "--device", "cpu"]
    assert main(["--data", str(faces_zip), "--labels", str(table), "--out", str(run), *settings]) == 0
    assert "hair (2 values)" in capsys.readouterr().err
    named = Directions.load(run / "exported" / DIRECTIONS_FILE).names
    assert {"hair-red", "hair-blue"} <= set(named)
    assert "hair-bright" not in named
    table.rename(tmp_path / "moved.csv")
    assert main(["export", str(run), "--out", str(tmp_path / "without")]) == 0
    assert "--labels" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "again"), "--labels", str(tmp_path / "moved.csv")]) == 0
    assert Directions.load(tmp_path / "again" / DIRECTIONS_FILE).names == named


def test_a_missing_file_of_labels_is_a_bad_command_line(faces_zip, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["--data", str(faces_zip), "--labels", str(tmp_path / "x.csv"), "--out", str(tmp_path / "run")])
    assert left.value.code == 2
    assert "--labels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
