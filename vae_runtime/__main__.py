"""The command line: python -m vae_runtime VERB, from `info` to `push`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import inference as benchmark
from benchmarks import parity
from benchmarks import runtimes as peers
from vae_runtime import latent
from vae_runtime.cli import diagnostics as doctor
from vae_runtime.cli.arguments import (
    EXIT_FAILURE,
    Parser,
    add_device,
    add_variant,
    existing_file,
    existing_path,
    integer,
    integers,
    number,
    output,
    progress,
    run,
)
from vae_runtime.config import CARD_FILE, CONFIG_FILE, PRIOR_FILE, VARIANTS, ModelConfig, graph_files
from vae_runtime.directions import Directions
from vae_runtime.errors import DeviceWarning, ImageError, InputError, ModelFileError, VAEError
from vae_runtime.figures import ANIMATIONS, image_grid, save_animation, save_png
from vae_runtime.golden import Golden
from vae_runtime.hub import push, resolve
from vae_runtime.images import Pixels, load_image
from vae_runtime.inversion import MAX_STEPS
from vae_runtime.model import VAE
from vae_runtime.ort.devices import usable_cores
from vae_runtime.ort.graph import MAX_BATCH
from vae_runtime.ort.verify import read_verified
from vae_runtime.picture_files import find_images
from vae_runtime.prior import Prior
from vae_runtime.stream import CodesFile, batches, prefetch
from vae_train.export.card_sections import write_chapter

_SECONDS = 2.0
_SHOWN = 50  # files that were left out, by name
_HIDDEN = np.uint8(128)  # the grey of what is to be painted
_MODEL = "a folder or hf:owner/name; the bundled model if not given"


def build_parser() -> Parser:
    parser = Parser(prog="python -m vae_runtime", description="Play an exported VAE through ONNX Runtime.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for add in (
        _add_info,
        _add_check,
        _add_reconstruct,
        _add_sample,
        _add_interpolate,
        _add_walk,
        _add_edit,
        _add_invert,
        _add_inpaint,
        _add_encode,
        _add_benchmark,
    ):
        verb = add(verbs)
        add_device(verb)
        add_variant(verb)
    _add_parity(verbs)
    _add_push(verbs)
    return parser


def _verb(verbs: argparse._SubParsersAction[Parser], name: str, text: str, do: Callable[..., int | None]) -> Parser:
    verb = verbs.add_parser(name, help=text)
    verb.set_defaults(do=do)
    return verb


def _add_info(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    info = _verb(verbs, "info", "what runs where, why not elsewhere, and the line that repairs it", show_info)
    info.add_argument("model", nargs="?", help=_MODEL)
    return info


def _add_check(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    verb = _verb(verbs, "check", "whether this device draws what the machine of the export drew", check_golden)
    verb.add_argument("model", nargs="?", help=_MODEL)
    return verb


def _add_reconstruct(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    verb = _verb(verbs, "reconstruct", "originals over their reconstructions", reconstruct_images)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    _add_output(verb, "reconstructions.png", ".png")
    return verb


def _add_sample(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    verb = _verb(verbs, "sample", "new faces from the prior", sample_faces)
    verb.add_argument("-n", type=integer(1, 4096), default=16, help="how many")
    _add_seed(verb)
    verb.add_argument("--truncation", type=number(0.1, 10), help="draw numbers beyond this many deviations again")
    _add_output(verb, "samples.png", ".png")
    return verb


def _add_interpolate(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    verb = _verb(verbs, "interpolate", "the way from one face to another", interpolate_faces)
    verb.add_argument("a", type=existing_file, metavar="A", help="the first picture")
    verb.add_argument("b", type=existing_file, metavar="B", help="the last picture")
    verb.add_argument("--steps", type=integer(2, 1000), default=8, help="pictures, both ends counted")
    verb.add_argument("--method", choices=("slerp", "lerp"), default="slerp", help="on the sphere or straight")
    _add_output(verb, "interpolation.png", ".png", *ANIMATIONS)
    return verb


def _add_walk(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    verb = _verb(verbs, "walk", "an endless way through faces, new ones or yours", walk_faces)
    verb.add_argument("images", nargs="*", type=existing_file, metavar="IMAGE", help="two pictures or more to pass")
    verb.add_argument("-n", type=integer(2, 256), default=8, help="new faces to pass, where no picture is given")
    verb.add_argument("--steps", type=integer(1, 240), default=16, help="frames from one face to the next")
    methods = ("catmull-rom", "slerp", "lerp")
    verb.add_argument("--method", choices=methods, default=methods[0], help="smooth, or straight from face to face")
    verb.add_argument("--open", action="store_true", help="end at the last face instead of going back to the first")
    _add_seed(verb)
    _add_output(verb, "walk.webp", *ANIMATIONS, ".png")
    return verb


def _add_edit(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    verb = _verb(verbs, "edit", "faces moved along a direction, from less to more", edit_faces)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    verb.add_argument(
        "--direction", help="a name of the model's or of --directions, or z7 for latent 7; the first if none"
    )
    verb.add_argument("--directions", type=existing_file, metavar="FILE", help="a .npz of named directions")
    verb.add_argument("--strength", type=number(0, 100), default=3.0, help="deviations at both ends")
    verb.add_argument("--steps", type=integer(2, 256), default=7, help="pictures, both ends counted")
    _add_output(verb, "edit.png", ".png", *ANIMATIONS)
    return verb


def _add_invert(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    text = "originals, their reconstructions, and pictures of codes found by descent; or those codes, as .npy"
    verb = _verb(verbs, "invert", text, invert_images)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    _add_steps(verb)
    _add_output(verb, "inversion.png", ".png", ".npy")
    return verb


def _add_inpaint(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    verb = _verb(verbs, "inpaint", "a face with a part painted anew: original, what is known, result", inpaint_image)
    verb.add_argument("image", type=existing_file, metavar="IMAGE", help="a picture of a face")
    where = verb.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", type=existing_file, metavar="FILE", help="a picture as large, white where to paint")
    where.add_argument("--box", type=_box, metavar="X,Y,W,H", help="where to paint, in pixels of the picture")
    _add_steps(verb)
    _add_output(verb, "inpainted.png", ".png")
    return verb


def _add_steps(verb: Parser) -> None:
    verb.add_argument("--steps", type=integer(0, MAX_STEPS), default=200, help="of the descent")


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}, expected four integers as in 8,8,16,16") from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise argparse.ArgumentTypeError(f"got {text[:40]}, expected X and Y >= 0, W and H >= 1")
    return x, y, width, height


def _add_encode(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    verb = _verb(verbs, "encode", "the codes (mu) of pictures or folders, as .npy and a list of names", encode_images)
    verb.add_argument("images", nargs="+", type=existing_path, metavar="PATH", help="pictures, or folders of them")
    verb.add_argument("--resume", action="store_true", help="go on with a file that an interrupted run left")
    verb.add_argument("--batch", type=integer(1, 4096), default=MAX_BATCH, help="pictures at a time")
    verb.add_argument("--model", help=_MODEL)
    verb.add_argument("-o", "--output", type=output(".npy"), default="codes.npy", help="the file to write")
    return verb


def _add_benchmark(verbs: argparse._SubParsersAction[Parser]) -> Parser:
    text = "speed here, beside bare ONNX Runtime, torch, OpenVINO and OpenCV where they are installed"
    verb = _verb(verbs, "benchmark", text, show_benchmark)
    verb.add_argument("model", nargs="?", help=_MODEL)
    verb.add_argument("--seconds", type=number(0.1, 600), default=_SECONDS, help="time for each row of the table")
    verb.add_argument("--batches", type=integers(1, 4096), default=list(benchmark.BATCHES), help="as 1,64")
    verb.add_argument("--threads", type=integers(1, 1024), help="CPU cores for each, as 1,2; all if not given")
    verb.add_argument("--json", type=output(".json"), help="write the rows to this file")
    return verb


def _add_parity(verbs: argparse._SubParsersAction[Parser]) -> None:
    text = "both graphs in every installed runtime, beside their exact values; status 1 if one fails"
    verb = _verb(verbs, "parity", text, show_parity)
    verb.add_argument("model", nargs="?", help=_MODEL)
    verb.add_argument("--threads", type=integer(1, 1024), help="CPU cores for each; all if not given")
    verb.add_argument(
        "--node-modules", type=Path, default="node_modules", help="where onnxruntime-node and onnxruntime-web are"
    )
    verb.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    verb.add_argument("--json", type=output(".json"), help="write each runtime, graph and batch to this file")
    verb.add_argument("--card", action="store_true", help="write the table into the model's card, README.md")


def _add_push(verbs: argparse._SubParsersAction[Parser]) -> None:
    verb = _verb(verbs, "push", "put a model folder, with its card, on the Hugging Face Hub", push_model)
    verb.add_argument("folder", type=existing_path, help="an exported model")
    verb.add_argument("repository", help="hf:owner/name; made if it is not there")
    verb.add_argument("--private", action="store_true", help="make it private if it is new")


def _add_seed(verb: Parser) -> None:
    verb.add_argument("--seed", type=integer(0, 2**63 - 1), default=0, help="the same seed gives the same faces")
    verb.add_argument("--temperature", type=number(0, 10), default=1.0, help="below 1 more alike, above 1 wilder")
    verb.add_argument("--prior", choices=("model", "unit"), default="model", help="fitted at export, or N(0, I)")


def _add_output(verb: Parser, default: str, *endings: str) -> None:
    verb.add_argument("--model", help=_MODEL)
    verb.add_argument("-o", "--output", type=output(*endings), default=default, help=f"a name in {' '.join(endings)}")
    verb.add_argument("--scale", type=integer(1, 32), default=4, help="screen pixels for each pixel of a face")
    if ".gif" in endings:
        verb.add_argument("--fps", type=number(0.1, 50), default=12.0, help="frames a second of an animation")


def show_info(arguments: argparse.Namespace) -> int:
    _show(doctor.environment())
    wrong, repair = doctor.diagnose()
    runs = True
    try:
        vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
        folder = resolve(arguments.model, arguments.variant)
        _show(_describe(vae) | doctor.nodes(vae, folder) | doctor.probe(vae))
    except VAEError as error:
        runs = False
        _show({"no model runs": str(error)})
    if not runs or not vae.device.startswith("cuda"):
        _show({"why not CUDA": doctor.why_cpu() or "it was not asked for"})
    _show({"wrong": wrong, "repair": repair} if wrong else {"wrong": "nothing"})
    return 0 if runs else EXIT_FAILURE


def check_golden(arguments: argparse.Namespace) -> int:
    folder = resolve(arguments.model)
    with VAE.load(folder, device=arguments.device) as vae:
        found = Golden.load(folder).check(vae)
        verdict = "" if found.tolerable else ", more than rounding explains"
        differ = f"pictures differ by at most {found.pixels} of 255, codes by {found.codes:.1g}"
        print(f"{vae.config.name} on {vae.device}: {differ}{verdict}")
    return 0 if found.tolerable else EXIT_FAILURE


def _describe(vae: VAE) -> dict[str, str]:
    config, data = vae.config, vae.config.training_data
    found = [variant for variant in VARIANTS if config.files.keys() >= set(graph_files(variant))]
    return {
        "model": f"{config.name} ({config.preset}), id {config.model_id}",
        "pictures": f"{config.image_size} x {config.image_size} RGB, latent_dim {config.latent_dim}",
        "variant": f"{vae.variant or 'float32'}, of float32{', '.join(['', *found])}",
        "prior": f"{vae.prior.kind}, fitted" if PRIOR_FILE in config.files else vae.prior.kind,
        "directions": ", ".join(vae.directions.names) if vae.directions else "none named",
        "trained on": f"{data.count} faces of {data.name}, likelihood {config.likelihood}, beta {config.beta:g}",
        **{metric: f"{figure:.4g}" for metric, figure in config.metrics.items()},
        "runs on": f"{vae.device} ({', '.join(vae.encoder.session.get_providers())})",
    }


def _show(facts: dict[str, str]) -> None:
    for name, value in facts.items():
        print(f"{name:<24}{value}")


def reconstruct_images(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    originals = vae.prepare(arguments.images)
    pictures = np.concatenate([originals, vae.reconstruct(originals)])
    _write_sheet(image_grid(pictures, len(originals), scale=arguments.scale), arguments)


def sample_faces(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    given = vars(arguments)
    faces = vae.sample(given["n"], given["seed"], given["temperature"], given["truncation"], given["prior"])
    _write_sheet(image_grid(faces, scale=arguments.scale), arguments)


def interpolate_faces(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    faces = vae.interpolate(arguments.a, arguments.b, steps=arguments.steps, method=arguments.method)
    _write_frames(faces[:, None], arguments, columns=len(faces))


def walk_faces(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    if arguments.images:
        keys = vae.encode(arguments.images)[0]
    else:
        prior = vae.prior if arguments.prior == "model" else Prior.standard(vae.latent_dim)
        keys = prior.sample(arguments.n, arguments.seed, arguments.temperature)
    way = latent.path(keys, arguments.steps, arguments.method, closed=not arguments.open)
    frames = list(progress(vae.iter_decode(way), "walk", len(way)))
    _write_frames(np.concatenate(frames)[:, None], arguments, columns=arguments.steps)


def edit_faces(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    known = Directions.load(arguments.directions) if arguments.directions else vae.directions
    name = arguments.direction or (known.names[0] if known is not None else _liveliest_latent(vae))
    vector = known[name] if known is not None and arguments.directions else vae.direction(name)
    mu = vae.encode(arguments.images)[0]
    amounts = np.linspace(-arguments.strength, arguments.strength, arguments.steps)
    frames = np.stack([vae.decode(mu + amount * vector) for amount in amounts])
    _write_frames(frames, arguments, columns=arguments.steps)


def _liveliest_latent(vae: VAE) -> str:
    """The single latent that changes the picture most: many of a VAE's latents do nothing at all."""
    middle = vae.decode(np.zeros(vae.latent_dim)).astype(int)
    moved = [np.abs(vae.decode(2 * code) - middle).sum() for code in np.eye(vae.latent_dim)]
    return f"z{np.argmax(moved)}"


def invert_images(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    originals = vae.prepare(arguments.images)
    codes = vae.invert(originals, steps=arguments.steps)
    if arguments.output.suffix.lower() == ".npy":
        np.save(arguments.output, codes)
        print(arguments.output)
        return
    pictures = np.concatenate([originals, vae.reconstruct(originals), vae.decode(codes)])
    _write_sheet(image_grid(pictures, len(originals), scale=arguments.scale), arguments)


def inpaint_image(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    image = load_image(arguments.image)
    mask: Pixels | NDArray[np.bool_] = load_image(arguments.mask) if arguments.mask else _boxed(image, arguments.box)
    painted = vae.inpaint(image, mask, arguments.steps)
    _, hidden = vae.prepare_masked(image, mask)
    original = vae.prepare(image)
    pictures = np.concatenate([original, np.where(hidden[..., None], _HIDDEN, original), painted])
    _write_sheet(image_grid(pictures, 3, scale=arguments.scale), arguments)


def _boxed(image: Pixels, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    x, y, width, height = box
    if x + width > image.shape[1] or y + height > image.shape[0]:
        raise InputError(f"--box {x},{y},{width},{height}: reaches out of {image.shape[1]} x {image.shape[0]} pixels")
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[y : y + height, x : x + width] = True
    return mask


def encode_images(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    unreadable: list[str] = []
    with CodesFile(arguments.output, vae.latent_dim, arguments.resume) as codes:
        found = find_images(arguments.images, known=codes.done())
        parts = prefetch(_read(vae, part, unreadable) for part in batches(map(str, found), arguments.batch))
        for part in progress(parts, "encode"):
            if part:
                codes.append([name for name, _ in part], vae.encode(np.stack([face for _, face in part]))[0])
        print(f"{codes.path}: {codes.count} codes of {codes.latent_dim} numbers, names in {codes.names_path}")
    left_out = unreadable + found.skipped
    for sentence in left_out[:_SHOWN]:
        print(f"note: left out {sentence}", file=sys.stderr)
    if len(left_out) > _SHOWN:
        print(f"note: left out {len(left_out) - _SHOWN} more", file=sys.stderr)


def _read(vae: VAE, names: list[str], unreadable: list[str]) -> list[tuple[str, Pixels]]:
    """The pictures of one batch that can be read; what is wrong with the others goes into `unreadable`."""
    found = []
    for name in names:
        try:
            found.append((name, vae.prepare(name)[0]))
        except ImageError as error:
            unreadable.append(str(error).removeprefix("images[0]: "))
    return found


def show_benchmark(arguments: argparse.Namespace) -> None:
    rows: list[benchmark.Row] = []
    missing: dict[str, str] = {}
    for threads in arguments.threads or [usable_cores()]:
        folder = resolve(arguments.model, arguments.variant)
        with VAE.load(arguments.model, variant=arguments.variant, device=arguments.device, threads=threads) as vae:
            measured = folder, peers.for_speed(), arguments.seconds, threads, arguments.batches
            found, absent = benchmark.measure(vae, *measured)
        rows += found
        missing |= absent
    print(f"{vae.config.name} on {vae.device}, {doctor.environment()['system']}\n")
    print(benchmark.table(rows))
    for name, reason in missing.items():
        print(f"not measured: {name} ({reason})")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def show_parity(arguments: argparse.Namespace) -> int:
    folder, threads = resolve(arguments.model), arguments.threads or usable_cores()
    if arguments.card and not (folder / CARD_FILE).is_file():
        raise ModelFileError(f"{folder}: no {CARD_FILE} in it, which --card needs; export the model again")
    with VAE.load(folder, device="cpu") as vae:
        everyone = peers.for_parity(arguments.node_modules)
        rows, missing = parity.measure(vae, folder, progress(everyone, "parity", len(everyone)), threads)
        found = parity.as_json(rows, missing, vae, folder)
    print(parity.as_markdown(rows) if arguments.markdown else parity.as_text(rows))
    for name, reason in missing.items():
        print(f"not tried: {name} ({reason})")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.card:
        conditions = f"{platform.system()} {platform.machine()}, {threads} cores"
        print(write_chapter(folder, "python -m vae_runtime parity", parity.chapter(rows, conditions)))
    return EXIT_FAILURE if parity.failures(rows) else 0


def push_model(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.folder)
    config = ModelConfig.load(folder)
    for file, digest in config.files.items():
        read_verified(folder / file, digest)
    # The card is shown with its pictures, which no digest guards.
    print(push(folder, arguments.repository, [CONFIG_FILE, CARD_FILE, "*.png", *config.files], arguments.private))


def _write_sheet(sheet: Pixels, arguments: argparse.Namespace) -> None:
    print(save_png(sheet, arguments.output))


def _write_frames(frames: Pixels, arguments: argparse.Namespace, columns: int) -> None:
    """frames (n, faces, S, S, 3): an animation of all faces side by side, or a sheet with a row a face."""
    if arguments.output.suffix.lower() == ".png":
        faces = frames.swapaxes(0, 1).reshape(-1, *frames.shape[2:])
        _write_sheet(image_grid(faces, columns, scale=arguments.scale), arguments)
        return
    pictures = [image_grid(faces, len(faces), scale=arguments.scale, gap=0) for faces in frames]
    print(save_animation(pictures, arguments.output, arguments.fps))


def main(arguments: Sequence[str]) -> int:
    parsed = build_parser().parse_args(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeviceWarning)
        status: int | None = parsed.do(parsed)
    for warning in caught:
        if parsed.verb != "info":
            print(f"note: {warning.message}", file=sys.stderr)
    return status or 0


if __name__ == "__main__":
    run(main)
