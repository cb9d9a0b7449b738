"""The command line: python -m vae_train [train] | export | inverse | variants | triton | evaluate.

Everything that can be wrong with a command line is found before torch is imported or a picture is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from vae_runtime.cli.arguments import EXIT_FAILURE, Parser, add_device, add_variant, integer, number, output, run
from vae_runtime.config import ENCODER_FILE, INVERSE_FILE, VARIANTS, ModelConfig
from vae_runtime.install import install_command
from vae_train.config import CONFIG_FILE, PRESETS, TrainConfig, make_config, option, resumed_config
from vae_train.data.sources import check_source
from vae_train.errors import UsageError

EXPORTED = "exported"


def train_parser() -> Parser:
    parser = Parser(
        prog="python -m vae_train",
        description="Train a VAE on faces, export it, draw the figures. "
        "Other commands: export, inverse, variants, triton, evaluate.",
    )
    for item in dataclasses.fields(TrainConfig):
        # Suppressed: what was not given must not overrule the preset, or the settings of a run that is resumed.
        given: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{item.metadata['help']} ({_default(item)})"}
        if isinstance(item.default, bool):
            parser.add_argument(option(item.name), action=argparse.BooleanOptionalAction, **given)
        elif "choices" in item.metadata:
            parser.add_argument(option(item.name), choices=item.metadata["choices"], **given)
        else:
            parser.add_argument(option(item.name), type=_kind(item), metavar=item.name.upper(), **given)
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, help="the run's folder (default: runs/PRESET-SOURCE)")
    where.add_argument("--resume", action="store_true", help="go on with the run in --out; its settings are kept")
    where.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard, too")
    add_device(parser)
    return parser


def _kind(item: dataclasses.Field[Any]) -> Callable[[str], Any]:
    if "low" not in item.metadata:
        return str
    low, high = item.metadata["low"], item.metadata["high"]
    return integer(low, high) if isinstance(item.default, int) else number(low, high)


def _default(item: dataclasses.Field[Any]) -> str:
    """default: 32; base: 64"""
    others = [f"; {name}: {values[item.name]}" for name, values in PRESETS.items() if item.name in values]
    return f"default: {item.default}{''.join(others)}"


def export_parser() -> Parser:
    parser = Parser(prog="python -m vae_train export", description="Export a run as two ONNX graphs and config.json.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN/exported)")
    parser.add_argument("--name", type=_name, help="the model's name (default: SOURCE-SIZE)")
    parser.add_argument("--data", help="where the run's pictures lie now (default: where they were)")
    parser.add_argument("--variants", type=_variants, default=(), help="smaller graphs, too: fp16,int8 or one of them")
    return parser


def variants_parser() -> Parser:
    parser = Parser(
        prog="python -m vae_train variants",
        description="Make the smaller graphs of an exported model, in place, and measure what they cost.",
    )
    parser.add_argument("model", type=Path, metavar="EXPORTED", help="an exported folder")
    parser.add_argument("--data", required=True, help="the pictures that it was trained on, as for training")
    parser.add_argument("--variants", type=_variants, default="fp16,int8", help="those that it is to have")
    return parser


def triton_parser() -> Parser:
    parser = Parser(
        prog="python -m vae_train triton",
        description="Write an exported model as a model repository for the NVIDIA Triton Inference Server.",
    )
    parser.add_argument("model", type=Path, metavar="EXPORTED", help="an exported folder")
    parser.add_argument("--out", type=Path, required=True, help="the model repository; made if it is not there")
    add_variant(parser)
    return parser


def inverse_parser() -> Parser:
    parser = Parser(
        prog="python -m vae_train inverse", description="Give an exported model of old its inverse.onnx, in place."
    )
    parser.add_argument("model", type=Path, metavar="EXPORTED", help="an exported folder")
    return parser


def evaluate_parser() -> Parser:
    parser = Parser(prog="python -m vae_train evaluate", description="Measure a run or an exported model on pictures.")
    parser.add_argument(
        "model", type=Path, metavar="RUN_OR_EXPORTED", help="a run, a checkpoint, or an exported folder"
    )
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="SOURCE",
        help="as for training, and may be repeated; of the model's own training data, the held-out pictures are used",
    )
    drawn = next(item for item in dataclasses.fields(TrainConfig) if item.name == "avatars")
    parser.add_argument(
        "--avatars", type=_kind(drawn), default=drawn.default, help="faces to draw, for --data avatars; as for training"
    )
    parser.add_argument(
        "--json", type=output(".json"), help="write the figures, KL of each latent included, to this file"
    )
    parser.add_argument("--card", action="store_true", help="write the figures into the card of the exported model")
    parser.add_argument(
        "--inverse",
        type=integer(1, 10_000),
        metavar="N",
        help="also invert, inpaint, ... the first N pictures (export)",
    )
    parser.add_argument("--figure", type=output(".png"), help="draw what --inverse found")
    parser.add_argument(
        "--gap",
        type=integer(1, 10_000),
        metavar="N",
        help="also find the best code of each of the first N pictures: what the encoder leaves of the bound (run)",
    )
    parser.add_argument(
        "--new-faces",
        type=integer(16, 100_000),
        nargs="?",
        const=2000,
        metavar="N",
        help="also judge N new faces (default 2000): FD, KID, precision, recall, copies, repeats (extra: refine)",
    )
    add_device(parser)
    return parser


def _variants(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {','.join(VARIANTS)}")
    return tuple(variant for variant in VARIANTS if variant in names)


def _name(text: str) -> str:
    from vae_runtime.config import NAME

    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected letters, digits, '.', '_', '-', at most 64")
    return text


def check_run_folder(folder: Path, resume: bool) -> None:
    """Raise UsageError unless a new run may be written into `folder`, or there is one to resume."""
    has_run = (folder / CONFIG_FILE).is_file()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: a file is in the way; give another folder")
    if resume and not has_run:
        raise UsageError(f"--resume: there is no run in {folder}; give the folder of one with --out")
    if not resume and has_run:
        raise UsageError(f"--out {folder}: holds a run already; add --resume to go on with it, or give another folder")
    if not resume and folder.is_dir() and {path.name for path in folder.iterdir()} - {".lock"}:
        raise UsageError(f"--out {folder}: not empty and not a run; give another folder")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"--out {folder}: {existing} cannot be written")


def default_run(config: dict[str, Any]) -> Path:
    """runs/PRESET-SOURCE"""
    source = str(config.get("data", TrainConfig.data)).removeprefix("hf:").rstrip("/")
    return Path("runs", f"{config.get('preset', TrainConfig.preset)}-{Path(source).name.split('.')[0]}")


def train_command(arguments: Sequence[str]) -> int:
    given = vars(train_parser().parse_args(arguments))
    out, resume, device_name, tensorboard = (given.pop(name) for name in ("out", "resume", "device", "tensorboard"))
    folder = out or default_run(given)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and (folder / CONFIG_FILE).is_file():
        resume = True  # torchrun starts all processes anew, with the same command, after one of them failed
    elif os.environ.get("RANK", "0") == "0":
        check_run_folder(folder, resume)
    config = resumed_config(folder, given) if resume else make_config(given)
    check_source(config.data)
    if tensorboard and find_spec("tensorboard") is None:
        raise UsageError(f"--tensorboard: its package is not installed; {install_command('tensorboard')}")

    from vae_train.engine.device import choose_device
    from vae_train.engine.distributed import DistributedContext
    from vae_train.engine.run_folder import Interrupted
    from vae_train.engine.train import train

    context = DistributedContext.from_environment()
    device = choose_device(device_name, context)
    try:
        faces = train(config, folder, device, resume, tensorboard, context)
    except Interrupted as stop:
        again = f"python -m vae_train --out {folder} --resume"
        if context.is_main:
            print(f"{stop}; a checkpoint is saved, go on with: {again}", file=sys.stderr)
        return stop.exit_status
    if not context.is_main:
        return 0

    from vae_train.export.export import export
    from vae_train.model.figures import FIGURES, draw_exported

    export(folder, folder / EXPORTED, faces=faces)
    draw_exported(folder, folder / EXPORTED, faces)
    print(f"figures: {folder / FIGURES}")
    print(f"graphs:  {folder / EXPORTED}")
    print(f"try:     python -m vae_runtime sample --model {folder / EXPORTED} -o samples.png")
    return 0


def export_command(arguments: Sequence[str]) -> int:
    given = export_parser().parse_args(arguments)
    if not given.run.exists():
        raise UsageError(f"{given.run}: no such run or checkpoint")

    from vae_train.engine.runs import find_run
    from vae_train.export.export import export, source_of
    from vae_train.export.publish import check_target

    out = given.out or find_run(given.run) / EXPORTED
    check_target(out)
    config = export(given.run, out, given.name, source_of(given.run, given.data), given.variants)
    print(f"{config.name}, id {config.model_id}: {out}")
    return 0


def variants_command(arguments: Sequence[str]) -> int:
    given = variants_parser().parse_args(arguments)
    if not given.model.is_dir():
        raise UsageError(f"{given.model}: no such exported model")
    check_source(given.data)
    config = ModelConfig.load(given.model)

    from vae_train.data.faces import load_faces
    from vae_train.export.quantize import add_variants, as_table

    costs = add_variants(given.model, load_faces(given.data, config.image_size), given.variants)
    if costs:
        print(as_table(costs))
    return 0 if len(costs) == len(given.variants) else EXIT_FAILURE


def triton_command(arguments: Sequence[str]) -> int:
    given = triton_parser().parse_args(arguments)
    if not given.model.is_dir():
        raise UsageError(f"{given.model}: no such exported model")

    from vae_train.export.triton import write_repository

    for folder in write_repository(given.model, given.out, given.variant):
        print(folder)
    return 0


def inverse_command(arguments: Sequence[str]) -> int:
    given = inverse_parser().parse_args(arguments)
    if not given.model.is_dir():
        raise UsageError(f"{given.model}: no such exported model")

    from vae_train.export.decoder_gradient import add_inverse

    config = add_inverse(given.model)
    print(f"{config.name}, id {config.model_id}: {given.model / INVERSE_FILE}")
    return 0


def evaluate_command(arguments: Sequence[str]) -> int:
    given = evaluate_parser().parse_args(arguments)
    if not given.model.exists():
        raise UsageError(f"{given.model}: no such run, checkpoint or exported model")
    for source in given.data:
        check_source(source)
    if given.figure and not given.inverse:
        raise UsageError("--figure: draws what --inverse N finds; add it")
    if given.inverse and not (given.model / INVERSE_FILE).is_file():
        raise UsageError(f"--inverse: there is no {INVERSE_FILE} in {given.model}; export it first")
    if given.gap and (given.model / ENCODER_FILE).is_file():
        raise UsageError(f"--gap: descends through torch; give the run that {given.model} was exported from")

    from vae_runtime.config import CARD_FILE
    from vae_train.engine.device import choose_device
    from vae_train.evaluation.amortization_gap import amortization_gap
    from vae_train.evaluation.evaluate import (
        as_table,
        card_section,
        check_model,
        evaluate,
        open_model,
        pictures_of,
        restorations,
        save_json,
    )
    from vae_train.evaluation.new_faces import SEED, check_features, judge_new_faces
    from vae_train.export.model_card import add_metrics, write_section

    check_model(given.model)
    if given.card and not (given.model / CARD_FILE).is_file():
        raise UsageError(f"--card: there is no {CARD_FILE} in {given.model}; give an exported model")
    if given.new_faces:
        check_features()
    device = choose_device(given.device)
    model = open_model(given.model, device)
    faces, pixels, which = pictures_of(model, given.data, given.avatars)
    figures = evaluate(model, pixels)
    if given.inverse:
        figures |= restorations(given.model, pixels[: given.inverse], given.figure)
    if given.gap:
        figures |= amortization_gap(given.model, pixels[: given.gap], device)
    if given.new_faces:
        training = faces.pixels[~faces.held_out()] if which == "held out" else None
        judged = judge_new_faces(lambda count: model.sample(count, SEED), pixels, training, device, given.new_faces)
        figures |= judged
    print(as_table(figures, f"{model.name} on {faces.name} ({which})"))
    if given.json:
        save_json({"model": model.name, "data": faces.name, "which": which, **figures}, given.json)
    if given.card:
        write_section(given.model, "python -m vae_train evaluate", card_section(figures, faces.name, which))
        if given.new_faces:
            add_metrics(given.model, judged)
    return 0


def crop_parser() -> Parser:
    parser = Parser(prog="python -m vae_train crop", description="Cut the faces out of pictures, ready for training.")
    parser.add_argument("source", metavar="FOLDER", help="a folder or an archive of pictures")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the faces into")
    parser.add_argument("--min-side", type=integer(8, 4096), default=64, metavar="N", help="smallest face, in pixels")
    parser.add_argument("--most", type=integer(1, 1000), default=10, metavar="N", help="faces of one picture")
    parser.add_argument("--center", action="store_true", help="cut the central squares; look for no faces")
    return parser


def crop_command(arguments: Sequence[str]) -> int:
    given = crop_parser().parse_args(arguments)

    from vae_train.data import crop

    detector = None if given.center else crop.load_detector()
    done = crop.crop(given.source, given.out, detector, min_side=given.min_side, most=given.most)
    print(crop.describe(done, given.out))
    return 0 if done.faces else EXIT_FAILURE


def main(arguments: Sequence[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else ("train", arguments)
    commands = {
        "train": train_command,
        "export": export_command,
        "variants": variants_command,
        "triton": triton_command,
        "inverse": inverse_command,
        "evaluate": evaluate_command,
        "crop": crop_command,
    }
    try:
        if command not in commands:
            raise UsageError(f"unknown command {command!r}, expected one of {', '.join(commands)}")
        return commands[command](rest)
    except UsageError as error:
        train_parser().error(str(error))


def script() -> NoReturn:
    """The console script anime-vae-train."""
    run(main)


if __name__ == "__main__":
    script()
