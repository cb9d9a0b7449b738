from __future__ import annotations

import itertools
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image
from tiny_model import DIM, SIZE

from vae_runtime import VAE, ImageError, InputError, InputTypeError, ModelFileError, VAEError
from vae_runtime.__main__ import main
from vae_runtime.stream import CodesFile, batches, chunks, open_codes, prefetch, read_names


@pytest.fixture(scope="module")
def vae(tiny):
    return VAE.load(tiny.folder, device="cpu")


@pytest.fixture
def faces(rng):
    return rng.integers(0, 256, (11, SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def folder(tmp_path, faces):
    """Eleven pictures, nested, and what is no picture."""
    for index, face in enumerate(faces):
        place = tmp_path / "faces" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(face).save(place / f"{index:02}.PNG")
    (tmp_path / "faces" / "notes.txt").write_text("no picture")
    return tmp_path / "faces"


def test_batches():
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


def test_chunks_before_an_error():
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    stream = chunks((1 // (3 - index) for index in range(9)), 2)
    assert [next(stream), next(stream)] == [[0, 0], [1]]


def test_lazy_forms_equal_the_whole_ones(vae, faces):
    mu, logvar = vae.encode(faces)
    parts = list(vae.iter_encode(iter(faces), 4))
    assert [len(part) for part, _ in parts] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), mu)
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), logvar)
    np.testing.assert_array_equal(np.concatenate(list(vae.iter_decode(iter(mu), 4))), vae.decode(mu))
    np.testing.assert_array_equal(np.concatenate(list(vae.iter_reconstruct(faces, 5))), vae.reconstruct(faces))
    assert list(vae.iter_encode([])) == []


def test_a_stream_is_read_no_further_than_it_must(vae, faces):
    seen = itertools.count()
    endless = (faces[next(seen) % 11] for _ in itertools.count())
    stream = vae.iter_encode(endless, 4)
    for _ in range(10):
        next(stream)
    stream.close()
    assert next(seen) <= 4 * (10 + 3)


def test_the_error_of_a_picture_comes_in_its_place(vae, faces):
    stream = vae.iter_encode([*faces[:5], b"no picture", *faces], 2)
    assert len(next(stream)[0]) == len(next(stream)[0]) == 2
    with pytest.raises(ImageError, match=r"images\[5\]"):
        next(stream)


@pytest.mark.parametrize("size", [0, -1, 10**6])
def test_batch_sizes_out_of_range_are_refused(vae, faces, size):
    with pytest.raises(InputError, match="batch_size"):
        vae.iter_encode(faces, size)


@pytest.mark.parametrize("form", ["iter_prepare", "iter_encode", "iter_reconstruct"])
def test_bad_pictures_can_be_left_out_and_are_reported(vae, faces, tmp_path, form):
    sources = [faces[0], b"no picture", *faces[1:3], tmp_path / "gone.png", faces[3]]
    stream = getattr(vae, form)(sources, 2, on_error="skip")
    parts = [part[0] if form == "iter_encode" else part for part in stream]
    whole = getattr(vae, form.removeprefix("iter_"))(faces[:4])
    np.testing.assert_array_equal(np.concatenate(parts), whole[0] if form == "iter_encode" else whole)
    assert [index for index, _ in stream.skipped] == [1, 4]
    assert all(isinstance(error, ImageError) and f"images[{index}]" in str(error) for index, error in stream.skipped)


def test_other_ways_to_handle_errors_are_refused(vae, faces):
    with pytest.raises(InputError, match="on_error"):
        vae.iter_encode(faces, on_error="ignore")


@pytest.mark.parametrize("value", [{"a": "b.png"}, {"b.png"}, 3])
def test_what_is_no_sequence_of_pictures_is_refused_at_once(vae, value):
    with pytest.raises(InputTypeError, match="images"):
        vae.iter_encode(value)


def test_closing_ends_the_thread_even_where_the_source_blocks(vae, faces):
    before, released = threading.active_count(), threading.Event()

    def blocking():
        yield from faces[:8]
        released.wait(60)

    stream = vae.iter_encode(blocking(), 2)
    next(stream)
    stream.close()
    assert not released.is_set()
    assert list(stream) == []
    released.set()
    for thread in threading.enumerate():
        if thread.name == "vae-runtime-prefetch":
            thread.join(10)
    assert threading.active_count() == before


@pytest.mark.parametrize("bad", [np.zeros(DIM + 1), np.full(DIM, np.nan), "code"])
def test_codes_that_do_not_fit_are_named_by_their_position(vae, bad):
    with pytest.raises(VAEError, match=r"codes\[1\]"):
        list(vae.iter_decode([np.zeros(DIM), bad]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads, from Python 3.12 on
def test_prefetch_ends_with_an_error_in_a_forked_child():
    items = prefetch(iter(range(9)))
    assert next(items) == 0
    child = os.fork()
    if child == 0:
        status = 1
        try:
            list(items)
        except InputError:
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(items) == [*range(1, 9)]


def test_reading_prefetch_ends_its_thread():
    before = threading.active_count()
    stream = prefetch(itertools.count())
    assert [next(stream), next(stream)] == [0, 1]
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        list(prefetch(1 // (2 - index) for index in range(4)))


def encode(folder, out, tiny, *options):
    return main(["encode", str(folder), "-o", str(out), "--model", str(tiny.folder), "--device", "cpu", *options])


def test_encode_writes_codes_and_names(tmp_path, folder, tiny, vae, capsys):
    out = tmp_path / "codes.npy"
    assert encode(folder, out, tiny, "--batch", "4") == 0
    codes, names = np.load(out), read_names(out)
    assert codes.dtype == np.float32
    assert len(names) == 11
    np.testing.assert_array_equal(codes, vae.encode(names)[0])
    np.testing.assert_array_equal(open_codes(out, DIM), codes)
    assert "11 codes" in capsys.readouterr().out


def test_encode_leaves_out_what_cannot_be_read(tmp_path, folder, tiny, capsys):
    (folder / "a" / "00.PNG").write_bytes(b"no picture")
    assert encode(folder, tmp_path / "codes.npy", tiny) == 0
    assert len(np.load(tmp_path / "codes.npy")) == 10
    assert "left out" in capsys.readouterr().err


def test_an_existing_file_is_not_overwritten(tmp_path, folder, tiny):
    (tmp_path / "codes.npy").write_bytes(b"precious")
    for name in ("codes.npy", "codes.names.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"precious")
        for verb in (["encode", str(folder)], ["invert", str(folder / "a" / "00.PNG"), "--steps", "1"]):
            with pytest.raises(InputError, match="exists already"):
                main([*verb, "-o", str(tmp_path / "codes.npy"), "--model", str(tiny.folder), "--device", "cpu"])
        with pytest.raises((InputError, ModelFileError), match="codes"):
            encode(folder, tmp_path / "codes.npy", tiny, "--resume")
        assert path.read_bytes() == b"precious"
        path.unlink()
        assert not list(tmp_path.glob("codes*"))


def test_codes_of_another_model_or_variant_are_not_resumed(tmp_path, rng):
    out, rows = tmp_path / "codes.npy", rng.normal(size=(2, DIM)).astype(np.float32)
    with CodesFile(out, DIM, model_id="m", variant="int8") as codes:
        codes.append(["a", "b"], rows)
    before = {path: path.read_bytes() for path in (out, codes.names_path)}
    for model_id, variant in (("other", "int8"), ("m", None), ("m", "fp16")):
        with pytest.raises(InputError, match="model"):
            CodesFile(out, DIM, model_id=model_id, variant=variant, resume=True)
    assert {path: path.read_bytes() for path in before} == before


def test_names_without_codes_and_codes_without_names_are_kept(tmp_path, rng):
    out = tmp_path / "codes.npy"
    for lost in (".npy", ".names.jsonl"):
        with CodesFile(out, DIM, model_id="m") as codes:
            codes.append(["a"], rng.normal(size=(1, DIM)).astype(np.float32))
        out.with_suffix(lost).unlink()
        (left,) = tmp_path.iterdir()
        before = left.read_bytes()
        for resume in (True, False):
            with pytest.raises(InputError, match="codes"):
                CodesFile(out, DIM, model_id="m", resume=resume)
        assert left.read_bytes() == before
        left.unlink()


@pytest.mark.skipif(os.name != "posix", reason="no locks on this system")
def test_codes_have_one_writer_at_a_time(tmp_path, rng):
    out, rows = tmp_path / "codes.npy", rng.normal(size=(2, DIM)).astype(np.float32)
    with CodesFile(out, DIM, model_id="m") as codes:
        codes.append(["a", "b"], rows)
        with pytest.raises(InputError, match=r"codes\.npy: another process"):
            CodesFile(out, DIM, model_id="m", resume=True)
        codes.append(["c", "d"], rows)
    with CodesFile(out, DIM, model_id="m", resume=True) as codes:
        assert codes.done() == set("abcd")


def test_a_folder_without_readable_pictures_leaves_no_file(tmp_path, tiny):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="empty"):
        encode(tmp_path / "empty", tmp_path / "codes.npy", tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("moment", ["names", "rows", "header", "between"])
def test_an_interrupted_run_leaves_a_valid_file_and_goes_on(tmp_path, rng, moment, monkeypatch):
    """Torn at each place of an append: what the header counts is right, and resuming gives the file of a whole run."""
    rows = rng.normal(size=(9, DIM)).astype(np.float32)
    names = [f"ü {index}\n" for index in range(9)]
    out = tmp_path / "codes.npy"
    with CodesFile(out, DIM, model_id="m") as codes:
        codes.append(names[:5], rows[:5])
        if moment == "header":  # rows and names are there, the header is not
            monkeypatch.setattr(CodesFile, "_write_header", lambda self, count: None)
            codes.append(names[5:7], rows[5:7])
            monkeypatch.undo()
    if moment in ("names", "rows"):
        with codes.names_path.open("ab") as file:
            file.write(json.dumps(names[5]).encode()[:4])
    if moment == "rows":
        with out.open("ab") as file:
            file.write(rows[5].tobytes()[:7])
    np.testing.assert_array_equal(np.load(out), rows[:5])
    assert read_names(out) == names[:5]
    with CodesFile(out, DIM, model_id="m", resume=True) as codes:
        assert codes.done() == set(names[:5])
        codes.append(names[5:], rows[5:])
    np.testing.assert_array_equal(np.load(out), rows)
    assert read_names(out) == names


def test_resuming_the_command_encodes_only_what_is_new(tmp_path, folder, tiny, faces):
    out = tmp_path / "codes.npy"
    encode(folder / "a", out, tiny)
    first = np.load(out)
    encode(folder, out, tiny, "--resume")
    np.testing.assert_array_equal(np.load(out)[: len(first)], first)
    encode(f"{folder}/../faces/./a", out, tiny, "--resume")
    assert len(np.load(out)) == len(set(read_names(out))) == 11


def test_resume_refuses_another_file(tmp_path, rng):
    out = tmp_path / "codes.npy"
    with CodesFile(out, DIM, model_id="m") as codes:
        codes.append(["a", "b"], rng.normal(size=(2, DIM)).astype(np.float32))
    with pytest.raises(ModelFileError, match="numbers"):
        CodesFile(out, DIM + 1, model_id="m", resume=True)
    origin = codes.names_path.read_text().splitlines()[0]
    codes.names_path.write_text(f'{origin}\n"a"\n')
    with pytest.raises(ModelFileError, match="fewer names"):
        CodesFile(out, DIM, model_id="m", resume=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + b"garbage" * 30),
        lambda path: np.save(path, np.zeros((2, 3))),
        lambda path: np.save(path, np.zeros((2, 3), ">f4")),
        lambda path: np.save(path, np.zeros(3, np.float32)),
        lambda path: np.save(path, np.array([object()]), allow_pickle=True),
        lambda path: (np.save(path, np.zeros((2, 3), np.float32)), path.write_bytes(path.read_bytes()[:-1])),
        lambda path: path.mkdir(),
    ],
)
def test_files_that_hold_no_codes_are_one_class_of_error(tmp_path, make):
    path = tmp_path / "codes.npy"
    make(path)
    with pytest.raises(ModelFileError, match=r"codes\.npy"):
        open_codes(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("rows", [0, 3])
def test_a_full_disk_is_named_and_leaves_no_file_without_rows(tmp_path, rng, rows):
    mu = rng.normal(size=(3, DIM)).astype(np.float32)
    out, names = tmp_path / "codes.npy", ["a", "b", "c"]

    def write():
        with CodesFile(out, DIM, model_id="m") as codes, open("/dev/full", "r+b", buffering=0) as full:
            if rows:
                codes.append(names, mu)
            codes._rows.close()
            codes._rows = full
            codes.append(["d", "e", "f"], mu)

    with pytest.raises(OSError, match=r"codes\.npy"):
        write()
    if not rows:
        assert list(tmp_path.iterdir()) == []
        return
    with CodesFile(out, DIM, model_id="m", resume=True) as codes:
        assert codes.done() == set(names)
    np.testing.assert_array_equal(np.load(out), mu)
