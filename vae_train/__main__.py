"""The command line: python -m vae_train [train] | export | evaluate | benchmark.

Everything that can be wrong with a command line is found before torch is imported or a picture is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_runtime.cli import Parser, add_device, integer, number, output, run
from vae_train.config import CONFIG_FILE, PRESETS, TrainConfig, make_config, option, resumed_config
from vae_train.data import check_source
from vae_train.errors import UsageError

EXPORTED = "exported"


def train_parser() -> Parser:
    parser = Parser(
        prog="python -m vae_train",
        description="Train a VAE on faces, export it, draw the figures. Other commands: export, evaluate, benchmark.",
    )
    for item in dataclasses.fields(TrainConfig):
        low, high = item.metadata["low"], item.metadata["high"]
        kind: Any = str if low is None else (integer(low, high) if isinstance(item.default, int) else number(low, high))
        # Suppressed: what was not given must not overrule the preset, or the settings of a run that is resumed.
        parser.add_argument(
            option(item.name),
            type=kind,
            default=argparse.SUPPRESS,
            choices=tuple(PRESETS) if item.name == "preset" else None,
            metavar=item.name.upper() if item.name != "preset" else None,
            help=f"{item.metadata['help']} (default: {item.default})",
        )
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, help="the run's folder (default: runs/PRESET-SOURCE)")
    where.add_argument("--resume", action="store_true", help="go on with the run in --out; its settings are kept")
    add_device(parser)
    return parser


def export_parser() -> Parser:
    parser = Parser(prog="python -m vae_train export", description="Export a run as two ONNX graphs and config.json.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN/exported)")
    parser.add_argument("--name", type=_name, help="the model's name (default: SOURCE-SIZE)")
    return parser


def evaluate_parser() -> Parser:
    parser = Parser(prog="python -m vae_train evaluate", description="Measure a run or an exported model on pictures.")
    parser.add_argument(
        "model", type=Path, metavar="RUN_OR_EXPORTED", help="a run, a checkpoint, or an exported folder"
    )
    parser.add_argument("--data", required=True, help="as for training; of a model's own source, the held-out pictures")
    parser.add_argument(
        "--json", type=output(".json"), help="write the figures, KL of each latent included, to this file"
    )
    add_device(parser)
    return parser


def benchmark_parser() -> Parser:
    parser = Parser(prog="python -m vae_train benchmark", description="Measure training here against the plain loop.")
    parser.add_argument("--data", default=TrainConfig.data, help="as for training")
    parser.add_argument("--preset", choices=tuple(PRESETS), default=TrainConfig.preset, help="the network")
    parser.add_argument("--seconds", type=number(1, 600), default=15.0, help="time for each loop")
    add_device(parser)
    return parser


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
    out, resume, device_name = (given.pop(name) for name in ("out", "resume", "device"))
    folder = out or default_run(given)
    check_run_folder(folder, resume)
    config = resumed_config(folder, given) if resume else make_config(given)
    check_source(config.data)

    from vae_train.train import Interrupted, choose_device, train

    device = choose_device(device_name)
    try:
        faces = train(config, folder, device, resume)
    except Interrupted as stop:
        again = f"python -m vae_train --out {folder} --resume"
        print(f"{stop}; a checkpoint is saved, go on with: {again}", file=sys.stderr)
        return stop.exit_status

    from vae_train.export import export
    from vae_train.figures import FIGURES, draw_exported

    export(folder, folder / EXPORTED)
    draw_exported(folder, folder / EXPORTED, faces)
    print(f"figures: {folder / FIGURES}")
    print(f"graphs:  {folder / EXPORTED}")
    print(f"try:     python -m vae_runtime sample --model {folder / EXPORTED} -o samples.png")
    return 0


def export_command(arguments: Sequence[str]) -> int:
    given = export_parser().parse_args(arguments)
    if not given.run.exists():
        raise UsageError(f"{given.run}: no such run or checkpoint")

    from vae_train.export import export, find_run

    out = given.out or find_run(given.run) / EXPORTED
    config = export(given.run, out, given.name)
    print(f"{config.name}, id {config.model_id}: {out}")
    return 0


def evaluate_command(arguments: Sequence[str]) -> int:
    given = evaluate_parser().parse_args(arguments)
    if not given.model.exists():
        raise UsageError(f"{given.model}: no such run, checkpoint or exported model")
    check_source(given.data)

    from vae_train.evaluate import as_table, check_model, evaluate, open_model, pictures_of, save_json
    from vae_train.train import choose_device

    check_model(given.model)
    model = open_model(given.model, choose_device(given.device))
    faces, pixels, which = pictures_of(model, given.data)
    figures = evaluate(model, pixels)
    print(as_table(figures, f"{model.name} on {faces.name} ({which})"))
    if given.json:
        save_json({"model": model.name, "data": faces.name, "which": which, **figures}, given.json)
    return 0


def benchmark_command(arguments: Sequence[str]) -> int:
    given = benchmark_parser().parse_args(arguments)
    config = make_config({"data": given.data, "preset": given.preset})
    check_source(config.data)

    from vae_train.benchmark import as_table, benchmark, describe_machine
    from vae_train.train import choose_device

    device = choose_device(given.device)
    rows, limit = benchmark(config, str(device), given.seconds)
    print(as_table(rows, limit, describe_machine(config, device)))
    return 0


def main(arguments: Sequence[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else ("train", arguments)
    commands = {
        "train": train_command,
        "export": export_command,
        "evaluate": evaluate_command,
        "benchmark": benchmark_command,
    }
    try:
        if command not in commands:
            raise UsageError(f"unknown command {command!r}, expected one of {', '.join(commands)}")
        return commands[command](rest)
    except UsageError as error:
        train_parser().error(str(error))


if __name__ == "__main__":
    run(main)
