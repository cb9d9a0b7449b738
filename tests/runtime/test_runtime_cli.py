from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hub_stand_in import hub
from PIL import Image
from tiny_model import DIM, SIZE, build_model

from vae_runtime import VAE, InputError, ModelConfig, Prior, figures, image_grid
from vae_runtime.__main__ import main
from vae_runtime.directions import Directions
from vae_runtime.images import prepare


@pytest.fixture
def pictures(tmp_path, rng):
    paths = []
    for name in ("a b.png", "-c.png"):
        paths.append(tmp_path / name)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(paths[-1])
    return [str(path) for path in paths]


@pytest.fixture
def options(tiny):
    return ["--model", str(tiny.folder), "--device", "cpu"]


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_sample(tmp_path, options, tiny, capsys):
    out = tmp_path / "samples.png"
    assert main(["sample", "-n", "6", "--seed", "3", "--scale", "2", "-o", str(out), *options]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    expected = image_grid(VAE.load(tiny.folder, device="cpu").sample(6, rng=3), scale=2)
    np.testing.assert_array_equal(read(out), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "-n", "4096", "--scale", "32", "-o", "s.png"],
        ["walk", "-n", "256", "--steps", "240", "--scale", "32", "-o", "w.webp"],
        ["edit", "FACE", "--steps", "256", "--scale", "32", "-o", "e.gif"],
    ],
)
def test_an_output_beyond_memory_is_refused_before_any_work(tmp_path, options, pictures, arguments, monkeypatch):
    monkeypatch.setattr(figures, "MAX_BYTES", 2**24)
    monkeypatch.setattr(VAE, "encode", None)
    monkeypatch.setattr(VAE, "decode", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="GiB"):
        main([pictures[0] if part == "FACE" else part for part in arguments] + list(options))


def test_an_edit_by_directions_of_another_model_is_refused(tmp_path, options, pictures):
    Directions(("smile",), np.ones((1, DIM + 1))).save(tmp_path / "d.npz")
    with pytest.raises(InputError, match="direction"):
        main(["edit", pictures[0], "--directions", str(tmp_path / "d.npz"), "-o", str(tmp_path / "e.png"), *options])


def test_reconstruct(tmp_path, options, pictures):
    out = tmp_path / "r.png"
    assert main(["reconstruct", *pictures, "--scale", "1", "-o", str(out), *options]) == 0
    assert read(out).shape == (2 * SIZE + 2, 2 * SIZE + 2, 3)


def test_invert(tmp_path, options, pictures, tiny):
    vae = VAE.load(tiny.folder, device="cpu")
    codes = vae.invert(pictures, steps=5)
    assert main(["invert", *pictures, "--steps", "5", "-o", str(tmp_path / "z.npy"), *options]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), codes)
    assert main(["invert", *pictures, "--steps", "5", "--scale", "1", "-o", str(tmp_path / "i.png"), *options]) == 0
    rows = np.concatenate([vae.prepare(pictures), vae.reconstruct(pictures), vae.decode(codes)])
    np.testing.assert_array_equal(read(tmp_path / "i.png"), image_grid(rows, 2))


def test_inpaint_by_a_box_or_a_mask(tmp_path, options, pictures, tiny):
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    sheets = []
    for where in (["--box", "10,5,10,10"], ["--mask", str(tmp_path / "m.png")]):
        out = tmp_path / "p.png"
        assert main(["inpaint", pictures[0], *where, "--steps", "5", "--scale", "1", "-o", str(out), *options]) == 0
        sheets.append(read(out))
    np.testing.assert_array_equal(*sheets)
    assert sheets[0].shape == (SIZE, 3 * SIZE + 4, 3)
    painted = VAE.load(tiny.folder, device="cpu").inpaint(pictures[0], mask, 5)[0]
    np.testing.assert_array_equal(sheets[0][:, -SIZE:], painted)
    assert (sheets[0][:, SIZE + 2 : -SIZE - 2] == 128).all(axis=2).any()


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "-1,0,3,3", "0,0,0,3"])
def test_a_box_that_is_none(box, options, pictures, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["inpaint", pictures[0], f"--box={box}", *options])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: argument --box: got ")


def test_a_box_beyond_the_picture(options, pictures, tmp_path):
    with pytest.raises(InputError, match="reaches out of 20 x 20 pixels"):
        main(["inpaint", pictures[0], "--box", "15,0,6,6", "-o", str(tmp_path / "p.png"), *options])


def test_avatar_draws_the_face_of_a_text(tmp_path, options, tiny):
    vae, out = VAE.load(tiny.folder, device="cpu"), tmp_path / "a.png"
    assert main(["avatar", "Ada", "顔", "--scale", "1", "-o", str(out), *options]) == 0
    np.testing.assert_array_equal(read(out), image_grid(np.stack([vae.face_of("Ada"), vae.face_of("顔")])))


def test_upscale(tmp_path, options, pictures, tiny):
    vae, out = VAE.load(tiny.folder, device="cpu"), tmp_path / "u.png"
    assert main(["upscale", *pictures, "--side", "2", "--steps", "5", "--scale", "1", "-o", str(out), *options]) == 0
    small = np.stack([np.asarray(Image.fromarray(face)) for face in prepare(pictures, 2)]).repeat(4, 1).repeat(4, 2)
    np.testing.assert_array_equal(read(out), image_grid(np.concatenate([small, vae.upscale(pictures, 2, 5)]), 2))


def test_nearest_searches_in_codes_of_this_model_only(tmp_path, options, pictures, tiny, capsys):
    codes, out = tmp_path / "c.npy", tmp_path / "n.png"
    main(["encode", *pictures, "-o", str(codes), *options])
    capsys.readouterr()
    assert main(["nearest", pictures[1], "--codes", str(codes), "--scale", "1", "-o", str(out), *options]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == pictures[1]
    assert shown[1].split(maxsplit=1) == ["0.000", pictures[1]]
    assert shown[2].endswith(pictures[0])
    assert read(out).shape == (SIZE, 3 * SIZE + 4, 3)
    with pytest.raises(InputError, match="no known faces"):
        main(["nearest", *pictures, "-o", str(out), *options])
    names = codes.with_suffix(".names.jsonl")
    names.write_text(names.read_text().replace("tiny", "other"))
    with pytest.raises(InputError, match="other"):
        main(["nearest", *pictures, "--codes", str(codes), "-o", str(out), *options])


def test_adapt_fits_a_prior_that_sample_and_walk_take(tmp_path, options, tiny, rng, capsys):
    (tmp_path / "mine").mkdir()
    for index in range(20):
        face = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(face).save(tmp_path / "mine" / f"{index:02}.png")
    (tmp_path / "mine" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "mine.npz"
    assert main(["adapt", str(tmp_path / "mine"), "-o", str(out), *options]) == 0
    printed = capsys.readouterr()
    assert "20 pictures" in printed.out
    assert "broken.png" in printed.err
    vae, prior = VAE.load(tiny.folder, device="cpu"), Prior.load(out)
    main(["sample", "-n", "4", "--prior", str(out), "--scale", "1", "-o", str(tmp_path / "s.png"), *options])
    np.testing.assert_array_equal(read(tmp_path / "s.png"), image_grid(vae.sample(4, rng=0, prior=prior)))
    assert main(["walk", "-n", "2", "--steps", "1", "--prior", str(out), "-o", str(tmp_path / "w.png"), *options]) == 0
    before = out.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        main(["adapt", str(tmp_path / "mine"), "-o", str(out), *options])
    assert out.read_bytes() == before
    Prior.standard(DIM + 1).save(tmp_path / "wide.npz")
    with pytest.raises(InputError, match=r"wide\.npz"):
        main(["sample", "--prior", str(tmp_path / "wide.npz"), "-o", str(tmp_path / "s.png"), *options])


def test_too_few_pictures_to_adapt(tmp_path, options, pictures):
    with pytest.raises(InputError, match="16"):
        main(["adapt", *pictures, "-o", str(tmp_path / "p.npz"), *options])
    assert not (tmp_path / "p.npz").exists()


def test_sample_takes_the_prior_that_is_named(tmp_path, options, tiny):
    out = tmp_path / "s.png"
    main(["sample", "-n", "4", "--prior", "unit", "--truncation", "0.5", "--scale", "1", "-o", str(out), *options])
    faces = VAE.load(tiny.folder, device="cpu").sample(4, rng=0, truncation=0.5, prior="unit")
    np.testing.assert_array_equal(read(out), image_grid(faces))


@pytest.mark.parametrize(("ending", "frames"), [(".png", 1), (".gif", 12), (".webp", 12)])
def test_walk(tmp_path, options, ending, frames):
    out = tmp_path / f"w{ending}"
    assert main(["walk", "-n", "3", "--steps", "4", "--seed", "2", "-o", str(out), *options]) == 0
    with Image.open(out) as picture:
        assert getattr(picture, "n_frames", 1) == frames
        assert picture.size == ((4 * 4 * SIZE + 6, 3 * 4 * SIZE + 4) if ending == ".png" else (4 * SIZE, 4 * SIZE))


def test_walk_through_pictures_ends_at_the_last(tmp_path, options, pictures, tiny):
    out = tmp_path / "w.png"
    assert main(["walk", *pictures, "--steps", "2", "--open", "--scale", "1", "-o", str(out), *options]) == 0
    faces = VAE.load(tiny.folder, device="cpu").reconstruct(pictures)
    sheet = read(out)
    np.testing.assert_array_equal(sheet[:SIZE, :SIZE], faces[0])
    np.testing.assert_array_equal(sheet[SIZE + 2 :, :SIZE], faces[1])


def test_walk_to_webm(tmp_path, options):
    cv2 = pytest.importorskip("cv2")
    out = tmp_path / "w.webm"
    assert main(["walk", "-n", "2", "--steps", "3", "--scale", "8", "-o", str(out), *options]) == 0
    video = cv2.VideoCapture(str(out))
    frames = [video.read() for _ in range(7)]
    assert [good for good, _ in frames] == [True] * 6 + [False]
    assert frames[0][1].shape == (8 * SIZE, 8 * SIZE, 3)


def test_edit_shows_a_row_for_each_face(tmp_path, options, pictures, tiny):
    out = tmp_path / "e.png"
    command = ["edit", *pictures, "--direction", "z2", "--steps", "3", "--strength", "2", "--scale", "1"]
    assert main([*command, "-o", str(out), *options]) == 0
    vae = VAE.load(tiny.folder, device="cpu")
    rows = np.stack([vae.edit(pictures, "z2", strength) for strength in (-2, 0, 2)], axis=1)
    np.testing.assert_array_equal(read(out), image_grid(rows.reshape(-1, SIZE, SIZE, 3), 3))


def test_edit_without_a_direction_takes_one_that_does_something(tmp_path, options, pictures, tiny):
    out, same = tmp_path / "e.png", tmp_path / "same.png"
    main(["edit", *pictures, "-o", str(out), *options])
    # of the tiny decoder, image = sigmoid(z V): the row of V that moves the sigmoid most at z = 2
    moved = [
        np.abs(tiny.decode(2 * code[None]).astype(int) - tiny.decode(0 * code[None])).sum() for code in np.eye(DIM)
    ]
    main(["edit", *pictures, "--direction", f"z{np.argmax(moved)}", "-o", str(same), *options])
    np.testing.assert_array_equal(read(out), read(same))


def test_edit_by_a_file_of_directions(tmp_path, options, pictures, capsys):
    path = Directions(("smile",), [[0.0, 1, 0, 0]]).save(tmp_path / "d.npz")
    for name in ("smile", "z1"):
        more = ["--directions", str(path)] if name == "smile" else []
        main(["edit", *pictures, "--direction", name, *more, "-o", str(tmp_path / f"{name}.png"), *options])
    np.testing.assert_array_equal(read(tmp_path / "smile.png"), read(tmp_path / "z1.png"))
    with pytest.raises(InputError, match="did you mean 'smile'"):
        main(["edit", *pictures, "--direction", "smiel", "--directions", str(path), *options])


@pytest.mark.parametrize(
    "words",
    [
        ["reconstruct", "{0}", "-o", "{0}"],
        ["reconstruct", "{1}", "{0}", "-o", "{link}"],
        ["interpolate", "{1}", "{0}", "-o", "{0}"],
        ["inpaint", "{1}", "--mask", "{0}", "-o", "{0}"],
    ],
)
def test_an_input_is_never_replaced(tmp_path, options, pictures, words, capsys):
    link = tmp_path / "link.png"
    link.symlink_to(pictures[0])
    before = [(tmp_path / path).read_bytes() for path in pictures]
    with pytest.raises(SystemExit) as caught:
        main([*(word.format(*pictures, link=link) for word in words), *options])
    assert caught.value.code == 2
    assert "--output" in capsys.readouterr().err
    assert [(tmp_path / path).read_bytes() for path in pictures] == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_pipes_are_said_and_stay(tmp_path, options, capsys):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for words in (["reconstruct", str(pipe)], ["sample", "-n", "1", "-o", str(pipe)]):
        with pytest.raises(SystemExit):
            main([*words, *options])
        error = capsys.readouterr().err
        assert str(pipe) in error
        assert "no such file" not in error
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["", "none.png", "x" * 300, "circle.png"])
def test_paths_that_lead_nowhere_are_one_sentence(tmp_path, options, name, capsys):
    (tmp_path / "circle.png").symlink_to("circle.png")
    path = str(tmp_path / name) if name else ""
    for verb in ("reconstruct", "encode"):
        with pytest.raises(SystemExit) as caught:
            main([verb, path, *options])
        error = capsys.readouterr().err
        assert caught.value.code == 2
        assert error.count("\n") == 1
        assert path in error


def test_names_cannot_command_the_terminal(tmp_path, options, pictures, capsys):
    bad = tmp_path / "new\nline\x1b[31m.png"
    bad.write_bytes(b"no picture")
    main(["encode", pictures[0], str(bad), "-o", str(tmp_path / "codes.npy"), *options])
    error = capsys.readouterr().err
    assert "new\\nline\\x1b[31m.png" in error
    assert error.count("\n") == 1
    face = tmp_path / "face\x1b[31m.png"
    shutil.copy(pictures[0], face)
    codes, out = str(tmp_path / "face.npy"), str(tmp_path / "n.png")
    main(["encode", str(face), "-o", codes, *options])
    main(["nearest", str(face), "--codes", codes, "-n", "1", "-o", out, *options])
    assert capsys.readouterr().out.count("face\\x1b[31m.png") == 2


def test_a_model_cannot_command_the_terminal(tmp_path, capsys):
    build_model(tmp_path / "m")
    config = ModelConfig.load(tmp_path / "m")
    dataclasses.replace(config, preset="\x1b]0;preset\x07", metrics={"\x1b[2J": 1.0}).save(tmp_path / "m")
    assert main(["info", str(tmp_path / "m"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "\\x1b]0;preset\\x07" in printed
    assert "\\x1b[2J" in printed
    assert "\x1b" not in printed


@pytest.mark.slow
def test_push_and_load_again(tmp_path, tiny, monkeypatch):
    """Through the real client, to a local stand-in of the Hub, and back from it."""
    (tmp_path / "hub").mkdir()
    folder = tmp_path / "model"
    shutil.copytree(tiny.folder, folder)
    (folder / "README.md").write_text("# the card")
    (folder / "private.txt").write_text("not of the model")
    with hub("models", "someone/tiny", tmp_path / "hub") as (endpoint, log):
        env = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_test",
            "PATH": "/usr/bin:/bin",
        }
        command = [sys.executable, "-m", "vae_runtime", "push", str(folder), "hf:someone/tiny"]
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "/commit/" in done.stdout
        assert any("Bearer hf_test" in line for line in log)
        (folder / "decoder.onnx").write_bytes(b"damaged")
        refused = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "decoder.onnx" in refused.stderr
    sent = {path.name for path in (tmp_path / "hub").iterdir()}
    assert sent == {"config.json", "encoder.onnx", "decoder.onnx", "inverse.onnx", "README.md"}
    assert VAE.load(tmp_path / "hub", device="cpu").config == VAE.load(tiny.folder, device="cpu").config


@pytest.mark.parametrize(("ending", "frames"), [(".png", 1), (".gif", 5), (".webp", 5)])
def test_interpolate(tmp_path, options, pictures, ending, frames):
    out = tmp_path / f"i{ending}"
    assert main(["interpolate", *pictures, "--steps", "5", "-o", str(out), *options]) == 0
    with Image.open(out) as picture:
        assert getattr(picture, "n_frames", 1) == frames


def test_info(tiny, capsys):
    assert main(["info", str(tiny.folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for text in ("onnxruntime", "tiny", "latent_dim 4", "runs on", "cpu", "CUDA", "NVIDIA driver", "first"):
        assert text in printed


BAD = [
    [],
    ["smaple"],
    ["sample", "--sede", "3"],
    ["sample", "-n", "0"],
    ["sample", "-n", "many"],
    ["sample", "--seed", "-1"],
    ["sample", "--temperature", "nan"],
    ["sample", "--device", "gpu"],
    ["sample", "-o", "samples.jpg"],
    ["sample", "-o", "no/such/folder/samples.png"],
    ["reconstruct"],
    ["reconstruct", "missing.png"],
    ["interpolate", "missing.png"],
    ["interpolate", "a.png", "b.png", "--steps", "1"],
    ["interpolate", "a.png", "b.png", "--method", "cubic"],
    ["walk", "-n", "1"],
    ["walk", "--steps", "0"],
    ["walk", "-o", "walk.mp4"],
    ["walk", "--fps", "0"],
    ["edit"],
    ["edit", "missing.png"],
    ["edit", "--strength", "inf", "a.png"],
    ["encode"],
    ["encode", "missing"],
    ["encode", ".", "-o", "codes.npz"],
    ["encode", ".", "--batch", "0"],
    ["adapt"],
    ["upscale"],
    ["nearest", "missing.png"],
    ["avatar"],
    ["adapt", ".", "-o", "prior.npy"],
    ["sample", "--prior", "mine"],
    ["sample", "--prior", "missing.npz"],
    ["push", "missing", "hf:a/b"],
    ["push", "."],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_command_lines_exit_with_2_and_one_sentence(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_misspelt_options_get_a_proposal(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--temprature", "1"])
    assert "did you mean --temperature?" in capsys.readouterr().err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vae_runtime", *arguments], capture_output=True, text=True)


def test_as_a_process(tmp_path, tiny):
    refused = run("sample", "--model", str(tmp_path / "none"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert run("--help").returncode == 0
    shown = run("info", str(tiny.folder), "--device", "cpu")
    assert shown.returncode == 0, shown.stderr
