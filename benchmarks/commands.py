"""The verbs of python -m benchmarks, and what each does with its arguments."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import eyes, gpu, inference, parity, runtimes, second_stage, training
from vae_runtime import VAE, ModelFileError
from vae_runtime.cli.arguments import (
    EXIT_FAILURE,
    Parser,
    add_device,
    add_variant,
    integer,
    integers,
    number,
    output,
    progress,
)
from vae_runtime.cli.diagnostics import environment
from vae_runtime.config import CARD_FILE
from vae_runtime.hub import resolve
from vae_runtime.ort.devices import usable_cores
from vae_train.config import make_config
from vae_train.data.faces import load_faces
from vae_train.data.sources import AVATARS, check_source
from vae_train.engine.device import choose_device, describe_device
from vae_train.errors import UsageError
from vae_train.export.model_card import write_section
from vae_train.model.presets import PRESETS

_MODEL = "a folder or hf:owner/name; default: the bundled model"
_GROUP = "instruments"


def build_parser() -> Parser:
    examples = (
        "python -m benchmarks parity exported/anime-64 --card",
        "python -m benchmarks inference --threads 1,2 --batches 1,8,64 --seconds 1",
        "python -m benchmarks training --preset base",
    )
    parser = Parser("python -m benchmarks", "Compare and measure, in a checkout.", examples)
    text = "both graphs in every installed runtime, compared with their exact values; status 1 if one fails"
    verb = parser.add_verb(_GROUP, "parity", text, run_parity)
    verb.add_argument("model", nargs="?", help=_MODEL)
    verb.add_argument("--threads", type=integer(1, 1024), help="CPU cores of each runtime; default: all")
    modules = Path("node_modules")
    verb.add_argument("--node-modules", type=Path, default=modules, help="holds onnxruntime-node, onnxruntime-web")
    verb.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    verb.add_argument("--json", type=output(".json"), help="write each runtime, graph and batch to this file")
    verb.add_argument("--card", action="store_true", help="write the table into the model's card, README.md")
    text = "speed of the graphs beside bare ONNX Runtime, torch, OpenVINO and OpenCV"
    verb = parser.add_verb(_GROUP, "inference", text, run_inference)
    verb.add_argument("model", nargs="?", help=_MODEL)
    verb.add_argument("--seconds", type=number(0.1, 600), default=2.0, help="time for each row of the table")
    batches = ",".join(map(str, inference.BATCHES))
    verb.add_argument("--batches", type=integers(1, 4096), default=list(inference.BATCHES), help=f"default: {batches}")
    verb.add_argument("--threads", type=integers(1, 1024), help="CPU cores of each runtime, as 1,2; default: all")
    verb.add_argument("--json", type=output(".json"), help="write the rows to this file")
    add_device(verb)
    add_variant(verb)
    verb = parser.add_verb(_GROUP, "training", "speed of training beside a plain PyTorch loop", run_training)
    verb.add_argument("--data", default=AVATARS, help="as for training")
    verb.add_argument("--preset", choices=tuple(PRESETS), help="default: each of them")
    verb.add_argument("--seconds", type=number(1, 600), default=15.0, help="time for each loop")
    add_device(verb)
    verb = parser.add_verb(_GROUP, "refine", "speed of the second stage, and where its time goes", run_refine)
    verb.add_argument("--repeats", type=integer(1, 10_000), default=20, help="steps, of which the median is shown")
    add_device(verb)
    verb = parser.add_verb(_GROUP, "eyes", "whether eyes and mouth of new faces are there, and eyes alike", run_eyes)
    verb.add_argument("model", nargs="?", help=_MODEL)
    verb.add_argument("--data", action="append", required=True, help="aligned faces, as for training")
    verb.add_argument("--count", type=integer(1, 1_000_000), default=2000, help="number of new faces")
    add_device(verb)
    text = "all of it on one device, and the second stage of training; each result is kept at once"
    verb = parser.add_verb(_GROUP, "gpu", text, run_gpu)
    verb.add_argument("model", nargs="?", help=_MODEL)
    verb.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder of the results")
    verb.add_argument("--data", default=AVATARS, help="as for training")
    verb.add_argument("--seconds", type=number(0.1, 600), default=15.0, help="time for each loop and row")
    batches = ",".join(map(str, gpu.BATCHES))
    verb.add_argument("--batches", type=integers(1, 4096), default=list(gpu.BATCHES), help=f"default: {batches}")
    verb.add_argument("--minutes", type=number(0.01, 600), default=10.0, help="time limit of the second stage")
    verb.add_argument("--steps", type=_steps, default=list(gpu.STEPS), help=f"default: {','.join(gpu.STEPS)}")
    verb.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the command")
    return parser


def _steps(text: str) -> list[str]:
    if unknown := [name for name in text.split(",") if name not in gpu.STEPS]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {','.join(gpu.STEPS)}")
    return text.split(",")


def run_parity(arguments: argparse.Namespace) -> int:
    folder, threads = resolve(arguments.model), arguments.threads or usable_cores()
    if arguments.card and not (folder / CARD_FILE).is_file():
        raise ModelFileError(f"{folder}: --card needs a {CARD_FILE} there; export the model again")
    with VAE.load(folder, device="cpu") as vae:
        listed = runtimes.for_parity(arguments.node_modules)
        rows, missing = parity.measure(vae, folder, progress(listed, "parity", len(listed)), threads)
        results = parity.as_json(rows, missing, vae, folder)
    print(parity.as_markdown(rows) if arguments.markdown else parity.as_text(rows))
    for name, reason in missing.items():
        print(f"not tried: {name} ({reason})")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if arguments.card:
        conditions = f"{platform.system()} {platform.machine()}, {threads} cores"
        print(write_section(folder, "python -m benchmarks parity", parity.card_section(rows, conditions)))
    return EXIT_FAILURE if parity.failures(rows) else 0


def run_inference(arguments: argparse.Namespace) -> None:
    rows: list[inference.Row] = []
    missing: dict[str, str] = {}
    folder = resolve(arguments.model, arguments.variant)
    for threads in arguments.threads or [usable_cores()]:
        with VAE.load(folder, variant=arguments.variant, device=arguments.device, threads=threads) as vae:
            found, absent = inference.measure(
                vae, folder, runtimes.for_speed(), arguments.seconds, threads, arguments.batches
            )
        rows += found
        missing |= absent
    print(f"{vae.config.name} on {vae.device}, {environment()['system']}\n")
    print(inference.as_table(rows))
    for name, reason in missing.items():
        print(f"not measured: {name} ({reason})")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def run_training(arguments: argparse.Namespace) -> None:
    check_source(arguments.data)
    device = choose_device(arguments.device)
    for preset in [arguments.preset] if arguments.preset else PRESETS:
        # The plain loop has no patch distance, and both must do the same sums.
        config = make_config({"data": (arguments.data,), "preset": preset, "sharpness": 0.0})
        rows, ceiling = training.measure(config, str(device), arguments.seconds)
        print(training.as_table(rows, ceiling, training.describe_machine(config, device)), end="\n\n", flush=True)


def run_refine(arguments: argparse.Namespace) -> None:
    device = choose_device(arguments.device)
    print(f"{describe_device(device)}\n\n{second_stage.as_table(second_stage.measure(device, arguments.repeats))}")


def run_eyes(arguments: argparse.Namespace) -> None:
    device = choose_device(arguments.device)
    with VAE.load(arguments.model, device=arguments.device) as vae:
        faces = load_faces(arguments.data, vae.image_size)
        print(eyes.as_table(eyes.measure(vae, faces, arguments.count, device)))


def run_gpu(arguments: argparse.Namespace) -> int:
    check_source(arguments.data)
    settings = gpu.Settings(
        resolve(arguments.model),
        arguments.data,
        choose_device(arguments.device),
        arguments.seconds,
        arguments.out,
        tuple(arguments.batches),
        arguments.minutes,
    )
    failed = gpu.run(settings, {name: gpu.STEPS[name] for name in arguments.steps})
    print(settings.out / "report.md")
    for name in failed:
        print(f"failed: {name}")
    return EXIT_FAILURE if failed else 0


def main(arguments: Sequence[str]) -> int:
    """Run a command line; its exit status."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    try:
        return parsed.do(parsed) or 0
    except UsageError as error:
        parser.error(str(error))
