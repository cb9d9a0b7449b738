"""What each verb of `python -m vae_train` does with its parsed arguments.

Everything that can be wrong with a command line is found before torch is imported or a picture is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_runtime.cli.arguments import EXIT_FAILURE, program
from vae_runtime.config import CARD_FILE, ENCODER_FILE, INVERSE_FILE, ModelConfig
from vae_runtime.hub import HUB_PREFIX
from vae_runtime.install import install_command
from vae_train.adversarial.config import REFINE_FILE, RefineConfig
from vae_train.config import (
    CONFIG_FILE,
    TrainConfig,
    absolute_sources,
    fine_tuning_length,
    make_config,
    option,
    resumed_config,
)
from vae_train.data.labels import read_labels
from vae_train.data.sources import AVATARS, check_outside, check_source
from vae_train.errors import MissingPackageError, UsageError
from vae_train.model.presets import PLAIN

if TYPE_CHECKING:
    from vae_train.data.faces import Faces

EXPORTED = "exported"
PACKAGES = ("torch", "onnx", "onnxscript", "safetensors", "filelock", "psutil", "sklearn", "tqdm", "matplotlib")


def check_packages(who: str = "training needs") -> None:
    """Raise MissingPackageError in an installation that has the runtime only."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise MissingPackageError(
            f"{who} packages that are not installed ({', '.join(missing)}): {install_command('train')}"
        )


def train(arguments: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(arguments).items() if name not in ("verb", "do")}
    out, resume, device_name, tensorboard = (given.pop(name) for name in ("out", "resume", "device", "tensorboard"))
    folder = out or default_run(given)
    resume = _resumes(folder, resume)
    given = _with_absolute_paths(given)
    config = resumed_config(folder, given) if resume else _new_config(given)
    for source in config.data:
        check_source(source)
    check_outside(folder, config.data, "--out")
    if tensorboard and find_spec("tensorboard") is None:
        raise UsageError(f"--tensorboard: its package is not installed; {install_command('tensorboard')}")

    from vae_train.engine import train as recipe
    from vae_train.engine.device import choose_device, limit_threads
    from vae_train.engine.distributed import DistributedContext
    from vae_train.engine.run_folder import Interrupted

    context = DistributedContext.from_environment()
    device = choose_device(device_name, context)
    limit_threads()
    prog = program("vae_train", "anime-vae-train")
    try:
        faces = recipe.train(config, folder, device, resume, tensorboard, context)
    except Interrupted as stop:
        if context.is_main:
            again = f"{prog} --out {shlex.quote(str(folder))} --resume"
            print(f"{stop}; a checkpoint is saved, continue with: {again}", file=sys.stderr)
        return stop.exit_status
    if not context.is_main:
        sys.stderr.flush()
        os._exit(0)  # threads that gloo leaves behind sometimes abort the interpreter's own shutdown
    _export_trained(folder, faces)
    if config.preset == "base":
        sources = " ".join(f"--data {shlex.quote(source)}" for source in config.data)
        print(f"crisper: {prog} refine {shlex.quote(str(folder))} {sources}  # the second stage, an hour or more")
    return 0


def _resumes(folder: Path, resume: bool) -> bool:
    """Whether to resume the run in `folder`; UsageError if it holds none, or if a new one may not be written there."""
    has_run = (folder / CONFIG_FILE).is_file()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and has_run:
        return True  # torchrun starts all processes anew, with the same command, after one of them failed
    if os.environ.get("RANK", "0") == "0":
        check_run_folder(folder, resume, has_run)
    return resume


def _with_absolute_paths(given: dict[str, Any]) -> dict[str, Any]:
    """Settings whose sources, labels and initial model exist, by absolute paths; UsageError if one does not."""
    found = dict(given)
    if "data" in given:
        for source in given["data"]:
            check_source(source)
        found["data"] = absolute_sources(given["data"])
    if given.get("labels"):
        read_labels(Path(given["labels"]))
        found["labels"] = os.path.abspath(given["labels"])
    if given.get("init") and not given["init"].startswith(HUB_PREFIX):
        if not Path(given["init"]).exists():
            raise UsageError(f"--init {given['init']}: no such model; give an exported folder, hf:owner/name or a run")
        found["init"] = os.path.abspath(given["init"])
    return found


def _export_trained(folder: Path, faces: Faces) -> None:
    """Export a finished run and draw its figures by the exported graphs."""
    from vae_train.export.export import export as export_run
    from vae_train.model.figures import FIGURES, draw_exported

    exported = folder / EXPORTED
    export_run(folder, exported, faces=faces)
    try:
        draw_exported(folder, exported, faces)
    except OSError as error:
        print(f"warning: {folder / FIGURES}: cannot be written ({error})", file=sys.stderr)
    print(f"figures: {folder / FIGURES}")
    print(f"graphs:  {exported}")
    print(f"try:     python -m vae_runtime sample --model {shlex.quote(str(exported))} -o samples.png")


def refine(arguments: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(arguments).items() if name not in ("verb", "do")}
    model, sources, avatars, out, resume, device_name = (
        given.pop(name) for name in ("model", "data", "avatars", "out", "resume", "device")
    )
    if resume:
        if out is None or model is not None:
            raise UsageError("refine --resume: needs --out, the run to continue, and no model")
        check_run_folder(out, resume, (out / CONFIG_FILE).is_file())
        folder, config, networks = out, resumed_refinement(out, given), TrainConfig.load(out)
        if sources:
            networks = dataclasses.replace(networks, data=absolute_sources(sources))
    else:
        if model is None or not sources:
            raise UsageError("refine: needs a model to start from, and --data with pictures of faces")
        folder = out or Path("runs", f"refined-{Path(model.removeprefix(HUB_PREFIX)).name}")
        check_run_folder(folder, resume, (folder / CONFIG_FILE).is_file())
        config = RefineConfig(start=Path(model.removeprefix(HUB_PREFIX)).name, **given)
        networks = TrainConfig(data=absolute_sources(sources), avatars=avatars)
    for source in networks.data:
        check_source(source)
    check_outside(folder, networks.data, "--out")

    from vae_train.adversarial import refine as recipe
    from vae_train.engine.device import choose_device, limit_threads
    from vae_train.engine.run_folder import Interrupted

    start = prior = None
    if not resume:
        networks, start, prior = recipe.load_start(model, networks)
    device = choose_device(device_name)
    limit_threads()
    try:
        recipe.refine(config, networks, start, prior, folder, device)
    except Interrupted as stop:
        again = f"{program('vae_train', 'anime-vae-train')} refine --out {shlex.quote(str(folder))} --resume"
        print(f"{stop}; a checkpoint is saved, continue with: {again}", file=sys.stderr)
        return stop.exit_status
    again = f"{program('vae_train', 'anime-vae-train')} export {shlex.quote(str(folder))}"
    print(f"new faces: {folder / 'figures' / 'new_faces'}\ngraphs:    {again}")
    return 0


def average(given: argparse.Namespace) -> int:
    for run in given.runs:
        if not (run / REFINE_FILE).is_file():
            raise UsageError(f"average: {run} is no run of refine")
    check_run_folder(given.out, False, (given.out / CONFIG_FILE).is_file())

    from vae_train.adversarial.average import average_runs

    average_runs(given.runs, given.out)
    export = f"{program('vae_train', 'anime-vae-train')} export {shlex.quote(str(given.out))}"
    print(f"the mean of {len(given.runs)} runs: {given.out}\ngraphs: {export}")
    return 0


def resumed_refinement(run: Path, given: dict[str, Any]) -> RefineConfig:
    """The settings of the second stage in `run`, with more images if they are given; UsageError for other changes."""
    saved = RefineConfig.load(run)
    differing = [
        f"{option(name)} {value} (the run has {getattr(saved, name)})"
        for name, value in given.items()
        if name != "images" and value != getattr(saved, name)
    ]
    if differing:
        raise UsageError(f"--resume: {run} was made with other settings: {', '.join(differing)}")
    return dataclasses.replace(saved, images=max(saved.images, given.get("images", saved.images)))


def _new_config(given: dict[str, Any]) -> TrainConfig:
    """The settings of a new run; one that starts from a model takes its sizes, and its length from the pictures."""
    if not given.get("init"):
        return make_config(given)
    from vae_train.data.faces import load_faces
    from vae_train.engine.initial import load_initial

    settings, _ = load_initial(given["init"], given.get("decoder", PLAIN), given.get("seed", 0))
    config = make_config(given, settings)
    faces = load_faces(config.data, config.image_size, config.avatars, config.seed)
    return make_config(fine_tuning_length(int((~faces.held_out()).sum())) | given, settings)


def default_run(config: dict[str, Any]) -> Path:
    """runs/PRESET-SOURCE, or runs/MODEL-SOURCE for a run that starts from a model."""
    data = config.get("data", AVATARS)
    source = (data if isinstance(data, str) else data[0]).removeprefix(HUB_PREFIX).rstrip("/")
    start = Path(config["init"]).name if config.get("init") else config.get("preset", TrainConfig.preset)
    return Path("runs", f"{start}-{Path(source).resolve().name.split('.')[0]}")


def check_run_folder(folder: Path, resume: bool, has_run: bool) -> None:
    """Raise UsageError unless a new run may be written into `folder`, or it holds one to resume."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file; give another folder")
    if resume and not has_run:
        raise UsageError(f"--resume: there is no run in {folder}; give the folder of one with --out")
    if not resume and has_run:
        raise UsageError(f"--out {folder}: already holds a run; add --resume to continue it, or give another folder")
    if not resume and folder.is_dir() and {path.name for path in folder.iterdir()} - {".lock"}:
        raise UsageError(f"--out {folder}: neither empty nor a run; give another folder")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"--out {folder}: {existing} is not writable")


def export(given: argparse.Namespace) -> int:
    if not given.run.exists():
        raise UsageError(f"{given.run}: no such run or checkpoint")

    from vae_train.engine.runs import find_run
    from vae_train.export.export import export as export_run
    from vae_train.export.export import source_of
    from vae_train.export.model_card import Statements
    from vae_train.export.publish import check_target

    out = given.out or find_run(given.run) / EXPORTED
    check_target(out)
    faces = source_of(given.run, given.data, given.labels)
    statements = Statements(given.license, given.data_license, tuple(given.tag))
    config = export_run(given.run, out, given.name, faces, given.variants, statements)
    print(f"{config.name}, id {config.model_id}: {out}")
    return 0


def variants(given: argparse.Namespace) -> int:
    if not given.model.is_dir():
        raise UsageError(f"{given.model}: no such exported model")
    for source in given.data:
        check_source(source)
    config = ModelConfig.load(given.model)

    from vae_train.data.faces import find_avatars, load_faces
    from vae_train.export.quantize import add_variants, as_table

    # Of avatars, those that the model was trained on are drawn again, as many and from the same seed.
    drawn = find_avatars(config.training_data.sha256, config.training_data.count) or ()
    costs = add_variants(given.model, load_faces(given.data, config.image_size, *drawn), given.variants)
    if costs:
        print(as_table(costs))
    return 0 if len(costs) == len(given.variants) else EXIT_FAILURE


def triton(given: argparse.Namespace) -> int:
    if not given.model.is_dir():
        raise UsageError(f"{given.model}: no such exported model")

    from vae_train.export.triton import write_repository

    for folder in write_repository(given.model, given.out, given.variant):
        print(folder)
    return 0


def inverse(given: argparse.Namespace) -> int:
    if not given.model.is_dir():
        raise UsageError(f"{given.model}: no such exported model")

    from vae_train.export.decoder_gradient import add_inverse

    config = add_inverse(given.model)
    print(f"{config.name}, id {config.model_id}: {given.model / INVERSE_FILE}")
    return 0


def evaluate(given: argparse.Namespace) -> int:
    _check_evaluation(given)

    from vae_train.engine.device import choose_device
    from vae_train.evaluation.amortization_gap import amortization_gap
    from vae_train.evaluation.evaluate import (
        as_table,
        card_section,
        check_model,
        open_model,
        pictures_of,
        restorations,
        save_json,
    )
    from vae_train.evaluation.evaluate import evaluate as measure
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
    figures = measure(model, pixels)
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


def _check_evaluation(given: argparse.Namespace) -> None:
    """Raise UsageError for what can be seen without opening the model."""
    if not given.model.exists():
        raise UsageError(f"{given.model}: no such run, checkpoint or exported model")
    for source in given.data:
        check_source(source)
    if given.figure and not given.inverse:
        raise UsageError("--figure: draws what --inverse N finds; add it")
    if given.inverse and not (given.model / INVERSE_FILE).is_file():
        raise UsageError(f"--inverse: there is no {INVERSE_FILE} in {given.model}; export it first")
    if given.gap and (given.model / ENCODER_FILE).is_file():
        raise UsageError(f"--gap: needs the torch networks; give the run that {given.model} was exported from")


def crop(given: argparse.Namespace) -> int:
    from vae_train.data import crop as cropping

    detector = None if given.center else cropping.load_detector()
    done = cropping.crop(given.source, given.out, detector, min_side=given.min_side, most=given.most)
    print(cropping.describe(done, given.out))
    return 0 if done.faces else EXIT_FAILURE
