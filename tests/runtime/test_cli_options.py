"""Every option that a verb takes acts, or is refused where it could not."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import DIM, build_model

from vae_runtime import VAE, Attributes, ModelConfig, Prior, VAEError, figures, image_grid
from vae_runtime.__main__ import build_parser, main
from vae_runtime.config import ATTRIBUTES_FILE, GOLDEN_FILE, PRIOR_FILE, VARIANTS, graph_files
from vae_runtime.directions import Directions


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model whose variants are the graphs of other weights, another model, and pictures."""
    folder = tmp_path_factory.mktemp("place")
    build_model(folder / "model")
    build_model(folder / "other", seed=9)
    files = dict(ModelConfig.load(folder / "model").files)
    for seed, variant in enumerate(VARIANTS, 1):
        build_model(folder / variant, seed=seed)
        for source, target in zip(graph_files(), graph_files(variant), strict=True):
            shutil.copy(folder / variant / source, folder / "model" / target)
            files[target] = hashlib.sha256((folder / "model" / target).read_bytes()).hexdigest()
    path = Prior([1.0], np.full((1, DIM), 2.0)).save(folder / "model" / PRIOR_FILE)
    files[PRIOR_FILE] = hashlib.sha256(path.read_bytes()).hexdigest()
    kinds = Attributes({"hair": ("blue", "red")}, np.eye(DIM)[:2] * 9, np.zeros(2), np.ones(1))
    files[ATTRIBUTES_FILE] = hashlib.sha256(kinds.save(folder / "model" / ATTRIBUTES_FILE).read_bytes()).hexdigest()
    dataclasses.replace(ModelConfig.load(folder / "model"), files=files).save(folder / "model")
    rng = np.random.default_rng(5)
    for name in "abcdefghijklmnopqrst":
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((20, 20), np.uint8)
    mask[:, :10] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    for name, pictures in (("known", "*.png"), ("few", "[abc].png")):
        paths = [str(path) for path in sorted(folder.glob(pictures)) if path.name != "mask.png"]
        main(["encode", *paths, "-o", str(folder / f"{name}.npy"), "--model", str(folder / "model"), "--device", "cpu"])
    Directions(("smile", "frown"), np.eye(DIM)[:2]).save(folder / "d.npz")
    return folder


BASE = {
    "sample": "sample --model model -o out.png",
    "walk": "walk --model model -o out.webp --steps 2",
    "reconstruct": "reconstruct a.png --model model -o out.png",
    "interpolate": "interpolate a.png b.png --model model -o out.webp",
    "avatar": "avatar Ada --model model -o out.png",
    "adapt": "adapt . --model model -o out.npz",
    "edit": "edit a.png --model model -o out.webp --direction z1",
    "invert": "invert a.png --model model -o out.png --steps 3",
    "inpaint": "inpaint a.png --model model --box 2,2,9,9 -o out.png --steps 3",
    "encode": "encode a.png b.png --model model -o out.npy",
    "upscale": "upscale a.png --side 4 --steps 3 --model model -o out.png",
    "nearest": "nearest a.png -n 2 --codes known.npy --model model -o out.png",
    "attributes": "attributes a.png b.png --model model",
    "info": "info model",
    "check": "check model",
}
OTHER = {
    "-n": "3",
    "--seed": "5",
    "--temperature": "0.5",
    "--prior": "unit",
    "--truncation": "0.5",
    "--scale": "2",
    "--model": "other",
    "--fps": "5",
    "--strength": "1",
    "--direction": "z2",
    "--directions": "d.npz",
    "--box": "1,1,5,5",
    "--mask": "mask.png",
    "--where": "hair=red",
}
FOR_VERB = {
    ("walk", "--method"): "lerp",
    ("walk", "--steps"): "3",
    ("interpolate", "--method"): "lerp",
    ("interpolate", "--steps"): "3",
    ("edit", "--steps"): "3",
    ("edit", "--direction"): "z2",
    ("edit", "--directions"): "d.npz --direction smile",
    ("invert", "--steps"): "9",
    ("inpaint", "--steps"): "9",
    ("upscale", "--side"): "2",
    ("upscale", "--steps"): "9",
    ("nearest", "--metric"): "cosine",
    ("nearest", "--codes"): "few.npy",
    ("inpaint", "--mask"): "mask.png",
}
ELSEWHERE = {"--help", "--output", "--batch", "--resume", "--private"}
"""Options with a test of their own in test_runtime_cli.py: they change the way and not what is written."""


def outcome(command: list[str], capsys) -> tuple[object, ...]:
    """Everything that a command line leaves: status, text, and what it wrote."""
    for path in Path.cwd().glob("out*"):
        path.unlink()
    try:
        status: object = main(command)
    except SystemExit as stop:
        status = stop.code
    except VAEError as error:
        print(error)
        status = 1
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if " ms" not in line]
    return status, lines, {path.name: path.read_bytes() for path in Path.cwd().glob("out*")}


CASES = [
    (name, next(text for text in action.option_strings[::-1] if text.startswith("-")))
    for name, verb in build_parser().verbs.items()
    if name != "push"
    for action in verb._actions
    if action.option_strings and not set(action.option_strings) & ELSEWHERE
]


@pytest.mark.parametrize(("verb", "option"), CASES, ids=lambda text: text)
@pytest.mark.filterwarnings("ignore:running on the CPU")
def test_every_option_of_every_verb_acts(verb, option, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("VAE_DEVICE", "cpu")
    base = BASE[verb].split()
    if verb == "inpaint" and option == "--mask":
        base = base[:4] + base[6:]
    if option == "--variant":
        changes = [[option, "fp16"], [option, "int8"]]
    elif option == "--device":
        changes = [[option, "cuda:99"]]
    elif option in ("--open", "--verbose"):
        changes = [[option]]
    else:
        changes = [[option, *FOR_VERB.get((verb, option), OTHER.get(option, "")).split()]]
    if verb == "check":  # golden vectors of its own, so that what is checked shows
        write_golden_of(place)
    plain = outcome([*base, *(["--box", "2,2,9,9"] if verb == "inpaint" and "--box" not in base else [])], capsys)
    found = [outcome([*base, *change], capsys) for change in changes]
    assert plain[0] in (0, None)
    for other in found:
        assert other != plain
        assert option == "--device" or other[0] in (0, None) or verb in ("check", "nearest", "attributes")
    assert len({str(other) for other in found}) == len(found)


def write_golden_of(place):
    from vae_train.export.golden import write_golden

    if GOLDEN_FILE not in ModelConfig.load(place / "model").files:
        write_golden(place / "model")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("walk a.png b.png --seed 3 -o out.webp", "--seed"),
        ("walk a.png b.png -n 3 -o out.webp", "-n"),
        ("walk a.png -o out.webp", "two or more"),
        ("sample --where hair=red --where hair=blue -o out.png", "--where"),
        ("sample --where hair -o out.png", "--where"),
        ("walk -o out.png --fps 3", "--fps"),
        ("invert a.png -o out.npy --scale 3", "--scale"),
        ("sample -n 4096 --scale 32 -o out.png", "GiB"),
        ("walk -n 256 --steps 240 --scale 32 -o out.webp", "GiB"),
    ],
)
def test_what_could_not_act_or_not_be_held_is_refused_before_the_work(command, said, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    if "GiB" in said:
        monkeypatch.setattr(figures, "MAX_BYTES", 2**26)
        monkeypatch.setattr("vae_runtime.model.VAE.decode", lambda *arguments: pytest.fail("work has started"))
    status, lines, files = outcome([*command.split(), "--model", "model", "--device", "cpu"], capsys)
    assert (status, files) == (1 if said == "GiB" else 2, {})
    assert len(lines) == 1
    assert said in lines[0]


def test_directions_for_another_latent_dim_are_refused_in_one_sentence(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    Directions(("smile",), np.ones((1, DIM + 1))).save(place / "wide.npz")
    status, _, files = outcome([*BASE["edit"].split()[:-2], "--directions", "wide.npz"], capsys)
    assert (status, files) == (1, {})


def test_attributes_are_told_and_asked_for(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    options = ["--model", "model", "--device", "cpu"]
    status, lines, _ = outcome(["attributes", "a.png", "b.png", *options], capsys)
    assert status == 0
    assert [line.split(": hair=")[0] for line in lines] == ["a.png", "b.png"]
    assert main(["sample", "-n", "4", "--where", "hair=red", "--scale", "1", "-o", "out.png", *options]) == 0
    with Image.open("out.png") as sheet:
        vae = VAE.load("model", device="cpu")
        expected = image_grid(vae.sample(4, rng=0, where={"hair": "red"}))
        np.testing.assert_array_equal(np.asarray(sheet), expected)
    assert outcome(["sample", "--where", "hair=plaid", "-o", "out.png", *options], capsys)[0] == 1


def test_help_lists_every_verb_and_no_default_that_is_none(capsys):
    parser = build_parser()
    text = parser.format_help()
    for name, verb in parser.verbs.items():
        assert f"\n  {name} " in text
        assert "None" not in verb.format_help()
    assert "examples:" in text


def test_an_option_of_another_verb_is_named_with_the_verbs_that_take_it(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--fps", "3"])
    said = capsys.readouterr().err
    assert "walk" in said
    assert "did you mean --fps" not in said
