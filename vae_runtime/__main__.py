"""The command line: python -m vae_runtime VERB, or anime-vae VERB."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from vae_runtime.cli import commands
from vae_runtime.cli.arguments import (
    Parser,
    UsageError,
    add_device,
    add_variant,
    check_inputs_stay,
    existing_file,
    existing_path,
    integer,
    number,
    output,
    program,
    run,
)
from vae_runtime.errors import DeviceWarning
from vae_runtime.figures import ANIMATIONS
from vae_runtime.inversion import MAX_STEPS
from vae_runtime.ort.graph import MAX_BATCH

_NEW, _YOURS, _CODES, _MODELS = "new faces", "faces of yours", "codes", "models"
_MODEL = "a folder or hf:owner/name; default: the bundled model"


def build_parser() -> Parser:
    prog = program("vae_runtime", "anime-vae")
    examples = (
        f"{prog} sample -n 16 --seed 7 -o faces.png",
        f"{prog} walk -n 8 -o walk.webp",
        f"{prog} edit me.png --direction hair-blue -o edit.png",
        f'{prog} avatar "Ada Lovelace" -o ada.png',
        f"{prog} encode photos/ -o codes.npy",
        f"{prog} adapt photos/ -o mine.npz && {prog} sample --prior mine.npz",
    )
    parser = Parser(prog, "Run an exported VAE through ONNX Runtime.", examples)
    _add_sample(parser)
    _add_walk(parser)
    _add_avatar(parser)
    _add_adapt(parser)
    _add_reconstruct(parser)
    _add_interpolate(parser)
    _add_edit(parser)
    _add_invert(parser)
    _add_inpaint(parser)
    _add_upscale(parser)
    _add_encode(parser)
    _add_nearest(parser)
    _add_attributes(parser)
    _add_info(parser)
    _add_check(parser)
    _add_push(parser)
    return parser


def _add_sample(parser: Parser) -> None:
    verb = parser.add_verb(_NEW, "sample", "faces sampled from the prior", commands.sample)
    verb.add_argument("-n", type=integer(1, 4096), default=16, help="number of faces")
    _add_sampling(verb)
    verb.add_argument("--truncation", type=number(0.1, 10), help="resample numbers beyond this many deviations")
    text = "only faces with an attribute, as hair=blue; may be given several times"
    verb.add_argument("--where", type=_where, action="append", default=None, metavar="COLUMN=VALUE", help=text)
    _add_sheet(verb, "samples.png", ".png")


def _add_walk(parser: Parser) -> None:
    verb = parser.add_verb(_NEW, "walk", "a seamless animation through faces, new ones or yours", commands.walk)
    verb.add_argument("images", nargs="*", type=existing_file, metavar="IMAGE", help="two or more pictures to pass")
    verb.add_argument("-n", type=integer(2, 256), help="number of new faces, without pictures (default: 8)")
    verb.add_argument("--steps", type=integer(1, 240), default=16, help="frames from one face to the next")
    methods = ("catmull-rom", "slerp", "lerp")
    verb.add_argument("--method", choices=methods, default=methods[0], help="a smooth curve, or straight segments")
    verb.add_argument("--open", action="store_true", help="end at the last face instead of returning to the first")
    _add_sampling(verb)
    _add_sheet(verb, "walk.webp", *ANIMATIONS, ".png")


def _add_reconstruct(parser: Parser) -> None:
    text = "originals above their reconstructions"
    verb = parser.add_verb(_YOURS, "reconstruct", text, commands.reconstruct)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    _add_sheet(verb, "reconstructions.png", ".png")


def _add_interpolate(parser: Parser) -> None:
    verb = parser.add_verb(_YOURS, "interpolate", "one face turning into another", commands.interpolate)
    verb.add_argument("a", type=existing_file, metavar="A", help="the first picture")
    verb.add_argument("b", type=existing_file, metavar="B", help="the last picture")
    verb.add_argument("--steps", type=integer(2, 1000), default=8, help="number of pictures, both ends included")
    verb.add_argument("--method", choices=("slerp", "lerp"), default="slerp", help="spherical or linear")
    _add_sheet(verb, "interpolation.png", ".png", *ANIMATIONS)


def _add_edit(parser: Parser) -> None:
    verb = parser.add_verb(_YOURS, "edit", "faces moved along a direction, from less to more", commands.edit)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    text = "a direction of the model or of --directions, or z7 for latent 7; default: the first"
    verb.add_argument("--direction", metavar="NAME", help=text)
    verb.add_argument("--directions", type=existing_file, metavar="FILE", help="a .npz of named directions")
    verb.add_argument("--strength", type=number(0, 100), default=3.0, help="standard deviations at both ends")
    verb.add_argument("--steps", type=integer(2, 256), default=7, help="number of pictures, both ends included")
    _add_sheet(verb, "edit.png", ".png", *ANIMATIONS)


def _add_invert(parser: Parser) -> None:
    text = "codes found by gradient descent: a sheet that compares them with encode, or the codes as .npy"
    verb = parser.add_verb(_YOURS, "invert", text, commands.invert)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    _add_steps(verb)
    _add_sheet(verb, "inversion.png", ".png", ".npy")


def _add_inpaint(parser: Parser) -> None:
    text = "a part of a face painted anew: original, what is kept, result"
    verb = parser.add_verb(_YOURS, "inpaint", text, commands.inpaint)
    verb.add_argument("image", type=existing_file, metavar="IMAGE", help="a picture of a face")
    where = verb.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--mask", type=existing_file, metavar="FILE", help="a picture of that size, white where to paint"
    )
    where.add_argument("--box", type=_box, metavar="X,Y,W,H", help="where to paint, in pixels of the picture")
    _add_steps(verb)
    _add_sheet(verb, "inpainted.png", ".png")


def _add_upscale(parser: Parser) -> None:
    text = "super-resolution: small pictures above the large ones that explain them"
    verb = parser.add_verb(_YOURS, "upscale", text, commands.upscale)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="small pictures of faces")
    verb.add_argument("--side", type=integer(1, 1024), default=16, help="resample them to this side first, in pixels")
    _add_steps(verb)
    _add_sheet(verb, "upscaled.png", ".png")


def _add_nearest(parser: Parser) -> None:
    text = "the most similar known faces: a row for each picture, distances and names on stdout"
    verb = parser.add_verb(_CODES, "nearest", text, commands.nearest)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    text = "search in a .npy that encode wrote; default: the known faces of the model"
    verb.add_argument("--codes", type=existing_file, metavar="FILE", help=text)
    verb.add_argument("-n", type=integer(1, 64), default=5, help="number of faces for each picture")
    verb.add_argument("--metric", choices=("euclidean", "cosine"), default="euclidean", help="distance between codes")
    _add_sheet(verb, "nearest.png", ".png")


def _add_encode(parser: Parser) -> None:
    text = "the codes (mu) of pictures or folders, as .npy, and the list of their names"
    verb = parser.add_verb(_CODES, "encode", text, commands.encode)
    verb.add_argument("images", nargs="+", type=existing_path, metavar="PATH", help="pictures, or folders of them")
    verb.add_argument("--resume", action="store_true", help="continue a file that an interrupted run left")
    verb.add_argument("--batch", type=integer(1, 4096), default=MAX_BATCH, help="pictures at a time")
    verb.add_argument("-o", "--output", type=output(".npy"), default="codes.npy", help="the file to write")
    _add_model(verb, "--model")


def _add_avatar(parser: Parser) -> None:
    text = "the face of a name or any text, the same on every machine"
    verb = parser.add_verb(_NEW, "avatar", text, commands.avatar)
    verb.add_argument("texts", nargs="+", metavar="TEXT", help="a name; several give a sheet")
    verb.add_argument("--temperature", type=number(0, 10), default=0.8, help="below 1 less varied, above 1 more")
    _add_prior(verb)
    _add_sheet(verb, "avatar.png", ".png")


def _add_adapt(parser: Parser) -> None:
    text = "a prior fitted to your own pictures, 16 or more, without training: for sample and walk"
    verb = parser.add_verb(_NEW, "adapt", text, commands.adapt)
    verb.add_argument("images", nargs="+", type=existing_path, metavar="PATH", help="pictures, or folders of them")
    verb.add_argument("-o", "--output", type=output(".npz"), default="prior.npz", help="the file to write")
    _add_model(verb, "--model")


def _add_attributes(parser: Parser) -> None:
    text = "the most probable attributes of each picture, as hair=blue, for a model with labels"
    verb = parser.add_verb(_CODES, "attributes", text, commands.attributes)
    verb.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    _add_model(verb, "--model")


def _add_info(parser: Parser) -> None:
    text = "what runs where, why not elsewhere, and the command that repairs it"
    _add_model(parser.add_verb(_MODELS, "info", text, commands.info))


def _add_check(parser: Parser) -> None:
    text = "whether this device gives the same pictures as the machine of the export"
    _add_model(parser.add_verb(_MODELS, "check", text, commands.check))


def _add_push(parser: Parser) -> None:
    text = "upload a model folder with its card to the Hugging Face Hub"
    verb = parser.add_verb(_MODELS, "push", text, commands.push_model)
    verb.add_argument("folder", type=existing_path, help="an exported model")
    verb.add_argument("repository", help="hf:owner/name; created if it does not exist")
    verb.add_argument("--private", action="store_true", help="create it as private")


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}, expected four integers as in 8,8,16,16") from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise argparse.ArgumentTypeError(f"got {text[:40]}, expected X and Y >= 0, W and H >= 1")
    return x, y, width, height


def _where(text: str) -> tuple[str, str]:
    column, separator, value = text.partition("=")
    if not (column and separator and value):
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}, expected COLUMN=VALUE as in hair=blue")
    return column, value


def _add_prior(verb: Parser) -> None:
    text = "model (fitted at export), unit (N(0, I)), or a .npz that adapt wrote (default: model)"
    verb.add_argument("--prior", type=_prior, metavar="PRIOR", help=text)


def _prior(text: str) -> str:
    if text in ("model", "unit"):
        return text
    if not text.lower().endswith(".npz"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected model, unit or a .npz file")
    return existing_file(text)


def _add_model(verb: Parser, name: str = "model") -> None:
    """The model, as an option or as the positional argument, and how to open it."""
    positional = {} if name.startswith("-") else {"nargs": "?"}
    verb.add_argument(name, help=_MODEL, metavar="MODEL", **positional)  # type: ignore[arg-type]
    add_device(verb)
    add_variant(verb)
    verb.add_argument("-v", "--verbose", action="store_true", help="say on stderr what runs where")


def _add_steps(verb: Parser) -> None:
    verb.add_argument("--steps", type=integer(0, MAX_STEPS), default=200, help="of gradient descent")


def _add_sampling(verb: Parser) -> None:
    text = "the same seed gives the same faces (default: 0)"
    verb.add_argument("--seed", type=integer(0, 2**63 - 1), help=text)
    verb.add_argument("--temperature", type=number(0, 10), help="below 1 less varied, above 1 more (default: 1)")
    _add_prior(verb)


def _add_sheet(verb: Parser, default: str, *endings: str) -> None:
    """The model, and the picture or animation to write."""
    verb.add_argument("-o", "--output", type=output(*endings), default=default, help=f"a name in {' '.join(endings)}")
    text = "output pixels for each pixel of a face (default: 4)"
    verb.add_argument("--scale", type=integer(1, 32), help=text)
    if ".gif" in endings:
        text = "frames per second of an animation (default: 12)"
        verb.add_argument("--fps", type=number(0.1, 50), help=text)
    _add_model(verb, "--model")


def main(arguments: Sequence[str]) -> int:
    """Run a command line; its exit status."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    do: Callable[[argparse.Namespace], int | None] = parsed.do
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeviceWarning)
        try:
            check_inputs_stay(parsed)
            status = do(parsed)
        except UsageError as error:
            parser.error(str(error))
    for warning in caught:
        if parsed.verb != "info":
            print(f"note: {warning.message}", file=sys.stderr)
    return status or 0


def script() -> NoReturn:
    """The console script anime-vae."""
    run(main)


if __name__ == "__main__":
    script()
