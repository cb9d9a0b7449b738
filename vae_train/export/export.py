"""Export a run as encoder.onnx, decoder.onnx, inverse.onnx, config.json and a model card, all or nothing.

The graphs are compared with the torch model through vae_runtime, as users run them, before anything is published. The
same weights give the same bytes: nothing of the machine, the time or the exporter's notes is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from vae_runtime.config import (
    ATTRIBUTES_FILE,
    CARD_FILE,
    DECODER_FILE,
    DIRECTIONS_FILE,
    ENCODER_FILE,
    FORMAT_VERSION,
    INVERSE_FILE,
    NEIGHBORS_FILE,
    PRIOR_FILE,
    ModelConfig,
    TrainingData,
    Variant,
)
from vae_runtime.directions import Neighbors
from vae_runtime.errors import VAEError
from vae_runtime.files import write_atomically
from vae_runtime.prior import Prior
from vae_train.adversarial.config import REFINE_FILE, RefineConfig
from vae_train.config import TrainConfig
from vae_train.data.faces import Faces, load_faces
from vae_train.data.sources import AVATARS
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.logger import read_metrics
from vae_train.engine.runs import find_run, load_run
from vae_train.errors import UsageError
from vae_train.export.agreement import check_parity
from vae_train.export.decoder_gradient import write_inverse
from vae_train.export.fit_latents import encode, fit_latents
from vae_train.export.golden import write_golden
from vae_train.export.model_card import NO_STATEMENTS, Statements, model_card, training_time
from vae_train.export.onnx_graph import OPSET, to_onnx
from vae_train.export.publish import check_target, replacement
from vae_train.export.quantize import as_table, write_variants
from vae_train.model.figures import draw_card
from vae_train.model.networks import VAE

FEW_PICTURES = 400
"""Number of pictures below which the export warns that new faces will vary little."""
KNOWN_FACES = 400
"""Number of avatars whose codes are exported with the model."""


def export(
    source: Path,
    out: Path,
    name: str | None = None,
    faces: Faces | None = None,
    variants: Sequence[Variant] = (),
    statements: Statements = NO_STATEMENTS,
) -> ModelConfig:
    """Export a run or one of its checkpoints into the folder `out`, and return the new config.

    name: of the model; by default, the source and the size of its pictures. faces: the source that it was trained on;
    without it the prior stays N(0, I), and there are no directions. variants: smaller graphs to add, which needs
    `faces`; see `vae_train.export.quantize`. statements: what the card says of licenses, and its tags.
    Raises UsageError, CheckpointError, or ExportError if the graphs differ from the model; `out` then stays as it was.
    """
    check_target(out)
    run = find_run(source)
    if variants and faces is None:
        raise UsageError("--variants: needs the pictures of the run; --data says where they are")
    config, saved, model = load_run(source)
    if faces and not faces.matches(saved.state["data"]["sha256"]):
        raise UsageError(f"{faces.name}: not the pictures that the run was trained on")
    with replacement(out) as folder:
        fields = _config_fields(config, saved, model, run, name)
        files = write_graphs(model, fields, folder)
        ModelConfig(**fields, files=files).save(folder)
        check_parity(model, folder)
        if faces:
            kept = Prior.load(run / PRIOR_FILE) if (run / PRIOR_FILE).is_file() else None
            written = [
                *write_fitted(model, config, faces, folder, kept),
                *write_neighbors(model, config, faces, folder),
            ]
            files |= {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in written}
            ModelConfig(**fields, files=files).save(folder)
        model_config = write_golden(folder)
        draw_card(folder)
        refined = RefineConfig.load(run) if (run / REFINE_FILE).is_file() else None
        spent = training_time(_records(run, saved), model_config.training_data.count)
        write_atomically(folder / CARD_FILE, model_card(model_config, config, folder, spent, statements, refined))
        if faces and variants:
            if costs := write_variants(folder, faces, variants):
                print(as_table(costs))
            model_config = ModelConfig.load(folder)
    return model_config


def write_graphs(model: VAE, fields: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write the three graphs into `folder`; the SHA-256 of each by file name. fields: of the model's config."""
    size, dim = model.image_size, model.latent_dim
    graphs: list[tuple[str, nn.Module, torch.Tensor, str, list[str]]] = [
        (ENCODER_FILE, model.encoder, torch.zeros(2, 3, size, size), "image", ["mu", "logvar"]),
        (DECODER_FILE, model.decoder, torch.zeros(2, dim), "z", ["image"]),
    ]
    noted = {key: fields[key] for key in sorted(fields.keys() - {"metrics"})}
    properties = {
        "format_version": str(FORMAT_VERSION),
        "model_id": fields["model_id"],
        "config": json.dumps(noted | {"training_data": vars(fields["training_data"])}, sort_keys=True),
    }
    digests = {}
    for file, module, example, input_name, output_names in graphs:
        graph = to_onnx(module, example, input_name, output_names)
        onnx.helper.set_model_props(graph, properties)
        data = graph.SerializeToString(deterministic=True)
        write_atomically(folder / file, data)
        digests[file] = hashlib.sha256(data).hexdigest()
    return digests | {INVERSE_FILE: write_inverse(folder)}


def write_fitted(model: VAE, config: TrainConfig, faces: Faces, folder: Path, kept: Prior | None = None) -> list[str]:
    """Write the prior, the directions and the attributes into `folder`; the names of the files.

    kept: the prior of a second stage, whose draws the decoder was tuned on.
    """
    prior, directions, attributes, scores = fit_latents(model, faces, config.flip, kept)
    shown = ", ".join(f"{name} {score:.1f}" for name, score in scores.items())
    print(f"prior: {prior.kind}; log density of held-out codes in nats: {shown}", file=sys.stderr)
    if kept is None and len(faces) < FEW_PICTURES:
        print(
            f"the prior is fitted to {len(faces)} pictures, so new faces will vary little or look soft; "
            "add pictures, or start from a trained model with --init",
            file=sys.stderr,
        )
    written = [directions.save(folder / DIRECTIONS_FILE)]
    if attributes is not None:
        written.append(attributes.save(folder / ATTRIBUTES_FILE))
    if not prior.is_standard:
        written.append(prior.save(folder / PRIOR_FILE))
    return [path.name for path in written]


def write_neighbors(model: VAE, config: TrainConfig, faces: Faces, folder: Path) -> list[str]:
    """Write the codes of the first `KNOWN_FACES` faces into `folder` if they may be published; the names of files."""
    if faces.name != AVATARS:
        return []
    mu = encode(model, faces.pixels[:KNOWN_FACES]).mu
    names = tuple(f"{AVATARS}/{config.seed}/{index}" for index in range(len(mu)))
    Neighbors(names, mu).save(folder / NEIGHBORS_FILE)
    return [NEIGHBORS_FILE]


def source_of(run: Path, data: Sequence[str] | None = None, labels: str | None = None) -> Faces | None:
    """The pictures that a run was trained on, from its own source or from `data`, where they lie now.

    labels: a file of labels, instead of the run's own. None, with a warning, if the run's own source is gone. Raises
    DataError if `data` or `labels` cannot be read.
    """
    config = TrainConfig.load(find_run(run))
    table = labels or config.labels
    if table and not labels and not Path(table).is_file():
        print(f"warning: {table}: the run's labels are gone; --labels says where they are now", file=sys.stderr)
        table = ""
    try:
        return load_faces(data or config.data, config.image_size, config.avatars, config.seed, table)
    except VAEError as error:
        if data or labels:
            raise
        print(f"warning: {error}; the prior stays N(0, I); --data says where the pictures are", file=sys.stderr)
        return None


def _records(run: Path, saved: Checkpoint) -> list[dict[str, Any]]:
    """The lines of the run's metrics.jsonl up to a checkpoint."""
    return [record for record in read_metrics(run) if record.get("step", math.inf) <= saved.step]


def _config_fields(config: TrainConfig, saved: Checkpoint, model: VAE, run: Path, name: str | None) -> dict[str, Any]:
    """The fields of ModelConfig, without the files."""
    records = _records(run, saved)
    held_out = {key: float(value) for key, value in (records or [{}])[-1].items() if key.startswith("held_out_")}
    # Nothing is measured before the first epoch ends: assume the deviation of pixels around mid-gray.
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
    """The first 16 hexadecimal digits of the SHA-256 of the weights' names, shapes and values."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(
            f"{key} {tuple(value.shape)} {value.dtype}\0".encode() + value.cpu().contiguous().numpy().tobytes()
        )
    return digest.hexdigest()[:16]
