"""A run becomes encoder.onnx, decoder.onnx, inverse.onnx, config.json and a model card, all at once or not at all.

The graphs are compared with the torch model through vae_runtime, the way a user will run them, before anything is put
into place. The same weights give the same bytes: nothing of the machine, the moment or the exporter's notes stays in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import vae_runtime
from vae_runtime.config import (
    CARD_FILE,
    CONFIG_FILE,
    DECODER_FILE,
    DIRECTIONS_FILE,
    ENCODER_FILE,
    FORMAT_VERSION,
    GOLDEN_FILE,
    INVERSE_FILE,
    NEIGHBORS_FILE,
    PRIOR_FILE,
    VARIANTS,
    ModelConfig,
    TrainingData,
    Variant,
    graph_files,
)
from vae_runtime.directions import Neighbors
from vae_runtime.errors import VAEError
from vae_train.config import TrainConfig
from vae_train.data.faces import Faces, load_faces
from vae_train.data.sources import AVATARS
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.logger import read_metrics
from vae_train.engine.runs import find_run, load_run
from vae_train.errors import ExportError, UsageError
from vae_train.export.decoder_gradient import write_inverse
from vae_train.export.fit_latents import encode, learn
from vae_train.export.golden import write_golden
from vae_train.export.model_card import CARD_FIGURES, model_card, training_time
from vae_train.model.figures import draw_card
from vae_train.model.networks import VAE

Array: TypeAlias = NDArray[np.floating]

OPSET = 20
"""From 22 on, ConvTranspose leaves the GPU in WebGPU and in older CUDA providers."""
TOLERANCE = 1e-5
"""Largest absolute difference between torch and vae_runtime that is published."""
KINK = 0.01
"""Largest share by which single gradients of inverse.onnx may differ; see `check_gradient`."""

KNOWN_FACES = 400
"""Avatars whose codes are shipped."""

_BATCHES = (1, 2, 5)
_OUR_FILES = {
    *(ENCODER_FILE, DECODER_FILE, INVERSE_FILE, PRIOR_FILE, DIRECTIONS_FILE, NEIGHBORS_FILE),
    *(GOLDEN_FILE, CONFIG_FILE, CARD_FILE),
    *CARD_FIGURES,
    *(file for variant in VARIANTS for file in graph_files(variant)),
}


def check_target(out: Path) -> None:
    """Raise UsageError unless `out` is free, empty, or holds an export of ours that may be replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: not a folder")
    if out.is_dir() and (foreign := {path.name for path in out.iterdir()} - _OUR_FILES):
        raise UsageError(f"--out {out}: holds other files ({', '.join(sorted(foreign)[:3])}); give a new folder")


def export(
    source: Path,
    out: Path,
    name: str | None = None,
    faces: Faces | None = None,
    variants: Sequence[Variant] = (),
) -> ModelConfig:
    """Export a run or one of its checkpoints into the folder `out`, and return its config.

    name: the model's; from the source of its pictures and their size if not given. faces: the source that it was
    trained on, if it is at hand; without it the prior stays N(0, I), and there are no directions.
    variants: smaller graphs to make; see `vae_train.export.quantize`. They need `faces`.
    Raises UsageError, CheckpointError, or ExportError when the graphs differ from the model by more than `TOLERANCE`;
    `out` is then as it was before.
    """
    out = out.absolute()
    check_target(out)
    run = find_run(source)
    if variants and faces is None:
        raise UsageError("--variants: needs the pictures of the run; --data says where they are")
    config, saved, model = load_run(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        described = _describe(config, saved, model, run, name)
        files = write_graphs(model, described, folder)
        learned: list[str] = []
        if faces:
            learned += write_learned(model, config, saved, faces, folder)
            learned += write_neighbors(model, config, faces, folder)
        files |= {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in learned}
        model_config = ModelConfig(**described, files=files)
        model_config.save(folder)
        check_parity(model, folder)
        model_config = write_golden(folder)
        draw_card(folder)
        spent = training_time(_records(run, saved), model_config.training_data.count)
        (folder / CARD_FILE).write_text(model_card(model_config, config, folder, spent), encoding="utf-8")
        if variants:
            from vae_train.export.quantize import as_table, write_variants  # it builds on this module

            assert faces is not None  # looked at above
            if costs := write_variants(folder, faces, variants):
                print(as_table(costs))
            model_config = ModelConfig.load(folder)
        move_into_place(folder, out, Path(temporary) / "replaced")
    return model_config


def write_graphs(model: VAE, described: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write the graphs into `folder`; return the SHA-256 of each by file name."""
    size, dim = model.image_size, model.latent_dim
    parts: list[tuple[str, nn.Module, torch.Tensor, str, list[str]]] = [
        (ENCODER_FILE, model.encoder, torch.zeros(2, 3, size, size), "image", ["mu", "logvar"]),
        (DECODER_FILE, model.decoder, torch.zeros(2, dim), "z", ["image"]),
    ]
    digests = {}
    for file, part, example, entry, exits in parts:
        graph = to_onnx(part, example, entry, exits)
        note = {key: described[key] for key in sorted(described.keys() - {"metrics"})}
        properties = {
            "format_version": str(FORMAT_VERSION),
            "model_id": described["model_id"],
            "config": json.dumps(note | {"training_data": vars(described["training_data"])}, sort_keys=True),
        }
        onnx.helper.set_model_props(graph, properties)
        data = graph.SerializeToString(deterministic=True)
        (folder / file).write_bytes(data)
        digests[file] = hashlib.sha256(data).hexdigest()
    return digests | {INVERSE_FILE: write_inverse(folder)}


def write_learned(model: VAE, config: TrainConfig, saved: Checkpoint, faces: Faces, folder: Path) -> list[str]:
    """Write the prior and the directions into `folder`, and name the files."""
    if not faces.matches(saved.state["data"]["sha256"]):
        raise UsageError(f"{faces.name}: not the pictures that the run was trained on")
    prior, directions, scores = learn(model, faces, config.flip)
    shown = ", ".join(f"{name} {score:.1f}" for name, score in scores.items())
    print(f"prior: {prior.kind}; log density of held-out codes in nats: {shown}", file=sys.stderr)
    directions.save(folder / DIRECTIONS_FILE)
    if prior.is_standard:
        return [DIRECTIONS_FILE]
    prior.save(folder / PRIOR_FILE)
    return [PRIOR_FILE, DIRECTIONS_FILE]


def write_neighbors(model: VAE, config: TrainConfig, faces: Faces, folder: Path) -> list[str]:
    """Write the codes of the first `KNOWN_FACES` pictures into `folder` if they may be shown, and name the file."""
    if faces.name != AVATARS:
        return []
    mu = encode(model, faces.pixels[:KNOWN_FACES]).mu
    names = tuple(f"{AVATARS}/{config.seed}/{index}" for index in range(len(mu)))
    Neighbors(names, mu).save(folder / NEIGHBORS_FILE)
    return [NEIGHBORS_FILE]


def source_of(run: Path, data: str | None = None) -> Faces | None:
    """The pictures that a run was trained on, from its own source or from where they lie now; None if they are gone."""
    config = TrainConfig.load(find_run(run))
    try:
        return load_faces(data or config.data, config.image_size, config.avatars, config.seed)
    except VAEError as error:
        if data:
            raise
        print(f"warning: {error}; the prior stays N(0, I); --data says where the pictures are", file=sys.stderr)
        return None


def to_onnx(part: nn.Module, example: torch.Tensor, entry: str, exits: list[str]) -> onnx.ModelProto:
    """One network as a self-contained, checked graph whose only dynamic axis is the first one, `batch`."""
    with _quiet():
        program = torch.onnx.export(
            part,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            optimize=True,
            verbose=False,
            input_names=[entry],
            output_names=exits,
            dynamic_shapes=({0: "batch"},),
        )
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    graph = strip(program.model_proto)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def strip(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Clear what the exporter notes beside the mathematics: it writes the source paths of the exporting machine."""
    graph.producer_name, graph.producer_version, graph.doc_string, graph.domain = "anime-vae", "", "", ""
    del graph.graph.value_info[:]
    graph.graph.name = "anime-vae"
    parts = [graph, graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    return graph


def check_parity(model: VAE, folder: Path) -> float:
    """Largest absolute difference between `model` and the graphs in `folder`; ExportError above `TOLERANCE`.

    inverse.onnx is compared, too: see `check_gradient`.
    """
    size, dim = model.image_size, model.latent_dim
    vae = vae_runtime.VAE.load(folder, device="cpu")
    rng = np.random.default_rng(0)
    worst = 0.0
    for batch in _BATCHES:
        image = rng.random((batch, 3, size, size), dtype=np.float32)
        z = rng.standard_normal((batch, dim), dtype=np.float32)
        with torch.no_grad():
            wanted = [*model.encoder(torch.from_numpy(image)), model.decoder(torch.from_numpy(z))]
        got = [*vae.encoder.run(image), *vae.decoder.run(z)]
        for name, expected, found in zip(("mu", "logvar", "image"), wanted, got, strict=True):
            difference = float(np.abs(expected.numpy() - found).max())
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{name} at batch {batch}: torch and ONNX Runtime differ by {difference:.2g}, "
                    f"more than {TOLERANCE:g}; nothing was published"
                )
            worst = max(worst, difference)
    check_gradient(model, vae)
    return worst


def check_gradient(model: VAE, vae: vae_runtime.VAE) -> float:
    """Difference of inverse.onnx from torch's autograd, as a share of the largest number: the median of some codes.

    A LeakyReLU has two slopes, and where its input is 0 but for rounding, torch and ONNX Runtime may take one each:
    then a whole gradient is a little off, and neither is wrong. So each loss must agree, and most gradients; those that
    do not may be off by `KINK`. ExportError otherwise.
    """
    rng, size = np.random.default_rng(1), model.image_size
    losses, gradients = [], []
    for batch in _BATCHES:
        z = rng.standard_normal((batch, model.latent_dim), dtype=np.float32)
        image = rng.random((batch, 3, size, size), dtype=np.float32)
        weight = rng.random((batch, 1, size, size), dtype=np.float32)
        code = torch.from_numpy(z).requires_grad_()
        squares = torch.from_numpy(weight) * (model.decoder(code) - torch.from_numpy(image)).square()
        loss = squares.flatten(1).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), code)
        found_loss, found_gradient = vae.inverse.run(z, image, weight)
        losses.append(_share(loss.detach().numpy()[:, None], found_loss[:, None]))
        gradients.append(_share(gradient.numpy(), found_gradient))
    worst, off = np.concatenate(losses).max(), np.concatenate(gradients)
    for name, difference, limit in (
        ("loss", worst, TOLERANCE),
        ("gradient", np.median(off), TOLERANCE),
        ("gradient", off.max(), KINK),
    ):
        if not difference <= limit:
            raise ExportError(
                f"{name} of {INVERSE_FILE}: torch and ONNX Runtime differ by {difference:.2g} of its size, "
                f"more than {limit:g}; nothing was published"
            )
    return float(max(worst, np.median(off)))


def _share(expected: Array, found: Array) -> Array:
    """(n, ...) twice -> (n,): the largest difference of each row as a share of the largest number of all."""
    differences: Array = np.abs(expected - found).max(axis=1) / np.abs(expected).max()
    return differences


def _records(run: Path, saved: Checkpoint) -> list[dict[str, Any]]:
    """The lines of the run's metrics.jsonl up to a checkpoint."""
    return [record for record in read_metrics(run) if record["epoch"] <= saved.state["epoch"]]


def _describe(config: TrainConfig, saved: Checkpoint, model: VAE, run: Path, name: str | None) -> dict[str, Any]:
    """The fields of ModelConfig, all but the digests of the files."""
    records = _records(run, saved)
    held_out = {key: float(value) for key, value in (records or [{}])[-1].items() if key.startswith("held_out_")}
    # Without a finished epoch nothing is measured: the deviation of pixels around grey, 1/2, is all that is known.
    error = held_out.get("held_out_squared_error", 0.25 * 3 * config.image_size**2)
    source = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(saved.state["data"]["name"].removeprefix("hf:")).stem).strip("-_")
    return {
        "name": name or f"{source[:50] or 'vae'}-{config.image_size}",
        "image_size": config.image_size,
        "latent_dim": config.latent_dim,
        "opset": OPSET,
        "preset": config.preset,
        "likelihood": config.likelihood,
        "beta": config.beta,
        "sigma": round(math.sqrt(error / (3 * config.image_size**2)), 6),
        "training_data": TrainingData(**saved.state["data"]),
        "metrics": {"epochs": float(saved.state["epoch"])} | {key: round(value, 4) for key, value in held_out.items()},
        "model_id": model_id(model),
    }


def model_id(model: VAE) -> str:
    """A text that these weights alone have: the first 16 digits of a digest over their names, shapes and values."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(
            f"{key} {tuple(value.shape)} {value.dtype}\0".encode() + value.cpu().contiguous().numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def move_into_place(folder: Path, out: Path, replaced: Path) -> None:
    """Rename `folder` to `out`; an export that lies there already is put back if that fails."""
    folder.chmod(0o777 & ~_umask())
    try:
        if out.exists():
            out.rename(replaced)
        folder.rename(out)
    except OSError as error:
        if replaced.exists():
            replaced.rename(out)
        raise ExportError(f"--out {out}: cannot be written ({error.strerror})") from error
    shutil.rmtree(replaced, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals, through two channels; what matters is checked afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
