"""The command line: python -m vae_train [VERB], or anime-vae-train [VERB]; without a verb it trains."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vae_runtime.cli.arguments import Parser, add_device, add_variant, integer, number, output, program, run
from vae_runtime.config import NAME, VARIANTS
from vae_train import commands
from vae_train.adversarial.config import numbers
from vae_train.config import TrainConfig, option
from vae_train.errors import UsageError
from vae_train.model.presets import PRESETS

_TRAINING, _MODELS = "training", "exported models"


def build_parser() -> Parser:
    prog = program("vae_train", "anime-vae-train")
    examples = (
        f"{prog} --data my_faces/ --preset base",
        f"{prog} --data my_faces/ --init exported/anime-64 --out runs/mine",
        f"{prog} --out runs/mine --resume",
        f"{prog} export runs/mine --out exported/mine",
    )
    parser = Parser(prog, "Train a VAE on faces, export it, measure it.", examples, default_verb="train")
    _add_train(parser, prog)
    _add_refine(parser, prog)
    _add_average(parser)
    _add_export(parser)
    _add_evaluate(parser)
    _add_crop(parser)
    _add_variants(parser)
    _add_triton(parser)
    _add_inverse(parser)
    return parser


def _add_train(parser: Parser, prog: str) -> None:
    examples = (f"{prog} --data my_faces/", f"{prog} --data a.zip --data b.zip --preset base --epochs 50")
    text = "train on pictures, export and draw figures (the default verb)"
    verb = parser.add_verb(_TRAINING, "train", text, commands.train, examples)
    for item in dataclasses.fields(TrainConfig):
        # Suppressed: what was not given must not override the preset, or the settings of a run that is resumed.
        given: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{item.metadata['help']}{_default(item)}"}
        if item.name == "data":
            verb.add_argument("--data", action="append", metavar="SOURCE", **given)
        elif isinstance(item.default, bool):
            verb.add_argument(option(item.name), action=argparse.BooleanOptionalAction, **given)
        elif "choices" in item.metadata:
            verb.add_argument(option(item.name), choices=item.metadata["choices"], **given)
        else:
            verb.add_argument(option(item.name), type=_kind(item), metavar=item.name.upper(), **given)
    where = verb.add_argument_group("where")
    where.add_argument("--out", type=Path, help="the run's folder (default: runs/PRESET-SOURCE)")
    where.add_argument("--resume", action="store_true", help="continue the run in --out with its settings")
    where.add_argument("--tensorboard", action="store_true", help="also write events for TensorBoard")
    add_device(verb)


def _add_refine(parser: Parser, prog: str) -> None:
    examples = (
        f"{prog} refine exported/anime-64 --data my_faces/ --out runs/refined",
        f"{prog} refine --out runs/refined --resume",
    )
    text = "tune the decoder until new faces look like faces: the adversarial second stage (extra: refine)"
    verb = parser.add_verb(_TRAINING, "refine", text, commands.refine, examples)
    help = "where to start: an exported folder, hf:owner/name, a run or one of its checkpoints"
    verb.add_argument("model", nargs="?", metavar="RUN_OR_EXPORTED", help=help)
    verb.add_argument("--data", action="append", metavar="SOURCE", help="pictures, as for training; required at first")
    avatars = next(item for item in dataclasses.fields(TrainConfig) if item.name == "avatars")
    help = "number of faces to draw, for --data avatars; as for training"
    verb.add_argument("--avatars", type=_kind(avatars), default=avatars.default, metavar="N", help=help)
    for item in numbers():
        help = f"{item.metadata['help']} (default: {item.default:,})"
        verb.add_argument(
            option(item.name), type=_kind(item), default=argparse.SUPPRESS, metavar=item.name.upper(), help=help
        )
    where = verb.add_argument_group("where")
    where.add_argument("--out", type=Path, help="the run's folder (default: runs/refined-MODEL)")
    where.add_argument("--resume", action="store_true", help="continue the run in --out with its settings")
    add_device(verb)


def _add_average(parser: Parser) -> None:
    text = "write the mean of the weights of runs of refine that began with one model"
    verb = parser.add_verb(_TRAINING, "average", text, commands.average)
    verb.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run's folder; the mean takes the first's place"
    )
    verb.add_argument("--out", type=Path, required=True, help="the folder of the new run")


def _kind(item: dataclasses.Field[Any]) -> Callable[[str], Any]:
    if "low" not in item.metadata:
        return str
    low, high = item.metadata["low"], item.metadata["high"]
    return integer(low, high) if isinstance(item.default, int) else number(low, high)


def _default(item: dataclasses.Field[Any]) -> str:
    """(default: 32; base: 64)"""
    set_by = {name: preset.settings for name, preset in PRESETS.items() if item.name in preset.settings}
    others = [f"; {name}: {settings[item.name]}" for name, settings in set_by.items()]
    default = item.default[0] if isinstance(item.default, tuple) else item.default
    return "" if default == "" else f" (default: {default}{''.join(others)})"


def _add_export(parser: Parser) -> None:
    text = "write a run as ONNX graphs and config.json"
    verb = parser.add_verb(_TRAINING, "export", text, commands.export)
    verb.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    verb.add_argument("--out", type=Path, help="the folder to write (default: RUN/exported)")
    verb.add_argument("--name", type=_name, help="name of the model (default: SOURCE-SIZE)")
    help = "where the run's pictures are now (default: where they were)"
    verb.add_argument("--data", action="append", metavar="SOURCE", help=help)
    verb.add_argument("--labels", metavar="FILE", help="labels of the pictures (default: those of the run)")
    verb.add_argument("--variants", type=_variants, default=(), help="also write smaller graphs: fp16, int8 or both")
    verb.add_argument(
        "--license", type=_name, help="license of the weights, for the card, as mit (default: not stated)"
    )
    verb.add_argument("--data-license", type=_line, help="license of the pictures, for the card (default: not stated)")
    verb.add_argument("--tag", type=_name, action="append", default=[], help="a tag for the card; may be repeated")


def _add_evaluate(parser: Parser) -> None:
    text = "measure a run or an exported model on pictures"
    verb = parser.add_verb(_TRAINING, "evaluate", text, commands.evaluate)
    help = "a run, a checkpoint, or an exported folder"
    verb.add_argument("model", type=Path, metavar="RUN_OR_EXPORTED", help=help)
    help = "as for training; of the model's own training data, the held-out pictures are used"
    verb.add_argument("--data", action="append", metavar="SOURCE", required=True, help=help)
    drawn = next(item for item in dataclasses.fields(TrainConfig) if item.name == "avatars")
    help = "number of faces to draw, for --data avatars (default: as for the training of the model)"
    verb.add_argument("--avatars", type=_kind(drawn), metavar="N", help=help)
    verb.add_argument("--json", type=output(".json"), help="write the figures, KL of each latent included, to a file")
    verb.add_argument("--card", action="store_true", help="write the figures into the card of the exported model")
    help = "also invert, inpaint and upscale the first N pictures (exported models)"
    verb.add_argument("--inverse", type=integer(1, 10_000), metavar="N", help=help)
    verb.add_argument("--figure", type=output(".png"), help="draw what --inverse found")
    help = "also optimize the codes of the first N pictures: the amortization gap of the encoder (runs)"
    verb.add_argument("--gap", type=integer(1, 10_000), metavar="N", help=help)
    help = "also judge N new faces (default: 2000): FD, KID, precision, recall, copies, repeats (extra: refine)"
    verb.add_argument("--new-faces", type=integer(16, 100_000), nargs="?", const=2000, metavar="N", help=help)
    add_device(verb)


def _add_crop(parser: Parser) -> None:
    verb = parser.add_verb(_TRAINING, "crop", "cut the faces out of pictures, ready for training", commands.crop)
    verb.add_argument("source", metavar="FOLDER", help="a folder or an archive of pictures")
    verb.add_argument("--out", type=Path, required=True, help="the folder to write the faces into")
    verb.add_argument("--min-side", type=integer(8, 4096), default=64, metavar="N", help="smallest face, in pixels")
    verb.add_argument("--most", type=integer(1, 1000), default=10, metavar="N", help="faces of one picture")
    verb.add_argument("--center", action="store_true", help="cut the central squares; look for no faces")


def _add_variants(parser: Parser) -> None:
    text = "add smaller graphs to an exported model and measure what they cost"
    verb = parser.add_verb(_MODELS, "variants", text, commands.variants)
    _add_exported(verb)
    help = "the pictures that it was trained on, as for training"
    verb.add_argument("--data", action="append", metavar="SOURCE", required=True, help=help)
    verb.add_argument("--variants", type=_variants, default="fp16,int8", help="the ones to write")


def _add_triton(parser: Parser) -> None:
    text = "write a model repository for the NVIDIA Triton Inference Server"
    verb = parser.add_verb(_MODELS, "triton", text, commands.triton)
    _add_exported(verb)
    verb.add_argument("--out", type=Path, required=True, help="the model repository; created if it does not exist")
    add_variant(verb)


def _add_inverse(parser: Parser) -> None:
    text = "add inverse.onnx to a model that was exported without it"
    _add_exported(parser.add_verb(_MODELS, "inverse", text, commands.inverse))


def _add_exported(verb: Parser) -> None:
    verb.add_argument("model", type=Path, metavar="EXPORTED", help="an exported folder")


def _variants(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {','.join(VARIANTS)}")
    return tuple(variant for variant in VARIANTS if variant in names)


def _line(text: str) -> str:
    if not (text.strip() and text.isprintable()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one line of text")
    return text


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected letters, digits, '.', '_', '-', at most 64")
    return text


def main(arguments: Sequence[str]) -> int:
    """Run a command line; its exit status."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    commands.check_packages()
    do: Callable[[argparse.Namespace], int | None] = parsed.do
    try:
        return do(parsed) or 0
    except UsageError as error:
        parser.error(str(error))


def script() -> NoReturn:
    """The console script anime-vae-train."""
    run(main)


if __name__ == "__main__":
    script()
