"""A run becomes encoder.onnx, decoder.onnx, config.json and a model card, all at once or not at all.

The graphs are compared with the torch model through vae_runtime, the way a user will run them, before anything is put
into place. The same weights give the same bytes: nothing of the machine, the moment or the exporter's notes stays in.
"""

from __future__ import annotations

import dataclasses
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from vae_runtime import model as runtime
from vae_runtime.config import CONFIG_FILE, DECODER_FILE, ENCODER_FILE, FORMAT_VERSION, ModelConfig, TrainingData
from vae_train import checkpoint
from vae_train.checkpoint import Checkpoint
from vae_train.config import CONFIG_FILE as RUN_CONFIG_FILE
from vae_train.config import TrainConfig, option
from vae_train.data import AVATARS
from vae_train.errors import CheckpointError, ExportError, UsageError
from vae_train.model import VAE
from vae_train.train import CHECKPOINTS, load_weights, read_metrics

OPSET = 20
"""From 22 on, ConvTranspose leaves the GPU in WebGPU and in older CUDA providers."""
TOLERANCE = 1e-5
"""Largest absolute difference between torch and vae_runtime that is published."""
CARD_FILE = "README.md"

_BATCHES = (1, 2, 5)
_OUR_FILES = {ENCODER_FILE, DECODER_FILE, CONFIG_FILE, CARD_FILE}


def check_target(out: Path) -> None:
    """Raise UsageError unless `out` is free, empty, or holds an export of ours that may be replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: not a folder")
    if out.is_dir() and (foreign := {path.name for path in out.iterdir()} - _OUR_FILES):
        raise UsageError(f"--out {out}: holds other files ({', '.join(sorted(foreign)[:3])}); give a new folder")


def find_run(source: Path) -> Path:
    """The run's folder for itself, or for the path of one of its checkpoints; UsageError for anything else."""
    run = source.resolve().parent.parent if source.is_file() else source
    if not (run / RUN_CONFIG_FILE).is_file():
        raise UsageError(f"{source}: neither a run nor a checkpoint of one")
    return run


def load_checkpoint(source: Path) -> Checkpoint:
    """The newest good checkpoint of a run's folder, or the one at this path."""
    if source.is_file():
        return checkpoint.load(source)
    saved, damaged = checkpoint.load_latest(source / CHECKPOINTS)
    for sentence in damaged:
        print(f"warning: {sentence}; taking the one before", file=sys.stderr)
    if saved is None:
        raise CheckpointError(f"{source}: no checkpoint in it that can be read; train it first")
    return saved


def load_run(source: Path) -> tuple[TrainConfig, Checkpoint, VAE]:
    """The settings, the checkpoint and the averaged network, ready to be used, of a run or of one checkpoint."""
    config = TrainConfig.load(find_run(source))
    saved = load_checkpoint(source)
    model = VAE(config.image_size, config.latent_dim).eval()
    load_weights(model, saved)
    return config, saved, model


def export(source: Path, out: Path, name: str | None = None) -> ModelConfig:
    """Export a run or one of its checkpoints into the folder `out`, and return its config.

    name: the model's; from the source of its pictures and their size if not given. Raises UsageError, CheckpointError,
    or ExportError when the graphs differ from the model by more than `TOLERANCE`; `out` is then as it was before.
    """
    out = out.absolute()
    check_target(out)
    run = find_run(source)
    config, saved, model = load_run(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        described = _describe(config, saved, model, run, name)
        files = write_graphs(model, described, folder)
        model_config = ModelConfig(**described, files=files)
        model_config.save(folder)
        (folder / CARD_FILE).write_text(model_card(model_config, config), encoding="utf-8")
        check_parity(model, folder)
        _move_into_place(folder, out, Path(temporary) / "replaced")
    return model_config


def write_graphs(model: VAE, described: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write both graphs into `folder`; return the SHA-256 of each by file name."""
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
    return digests


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
    """Largest absolute difference between `model` and the graphs in `folder`; ExportError above `TOLERANCE`."""
    size, dim = model.image_size, model.latent_dim
    vae = runtime.VAE.load(folder, device="cpu")
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
    return worst


def _describe(config: TrainConfig, saved: Checkpoint, model: VAE, run: Path, name: str | None) -> dict[str, Any]:
    """The fields of ModelConfig, all but the digests of the files."""
    records = [record for record in read_metrics(run) if record["epoch"] <= saved.state["epoch"]]
    held_out = {key: float(value) for key, value in (records or [{}])[-1].items() if key.startswith("held_out_")}
    # Without a finished epoch nothing is measured: the deviation of pixels around grey, 1/2, is all that is known.
    error = held_out.get("held_out_reconstruction", 0.25 * 3 * config.image_size**2)
    source = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(saved.state["data"]["name"].removeprefix("hf:")).stem).strip("-_")
    return {
        "name": name or f"{source[:50] or 'vae'}-{config.image_size}",
        "image_size": config.image_size,
        "latent_dim": config.latent_dim,
        "opset": OPSET,
        "preset": config.preset,
        "likelihood": "mse",
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


def model_card(config: ModelConfig, trained: TrainConfig) -> str:
    """README.md of an export: a Hugging Face model card."""
    data, size = config.training_data, config.image_size
    settings = {item.name: getattr(trained, item.name) for item in dataclasses.fields(trained)} | {"data": data.name}
    shown = {"data", "epochs", "seed"} | {key for key in settings if settings[key] != getattr(TrainConfig, key)}
    command = " ".join(f"{option(key)} {value}" for key, value in settings.items() if key in shown)
    licence = (
        "The faces were drawn by python_avatars (MIT) and are free to use."
        if data.name == AVATARS
        else "The pictures belong to their makers; the licence of this source is not stated."
    )
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value:g} |" for key, value in config.metrics.items())
    return f"""---
license: mit
library_name: anime-vae
pipeline_tag: unconditional-image-generation
tags: [vae, onnx, onnxruntime, faces]
---

# {config.name}

A convolutional variational autoencoder for {size}x{size} faces, as two ONNX graphs (opset {config.opset}):
`encoder.onnx` (image -> mu, logvar) and `decoder.onnx` (z -> image), with z of {config.latent_dim} numbers.

```python
from vae_runtime import VAE

vae = VAE.load("path/of/this/folder")
faces = vae.sample(16, rng=0)
```

## Training

{data.count} faces of `{data.name}` (content {data.sha256[:16]}), preset `{config.preset}`, likelihood
`{config.likelihood}`, beta {config.beta:g}, model id `{config.model_id}`. Made by `python -m vae_train {command}`.
{licence} The weights are under the MIT licence.

## Figures

On the held-out 5 % of the same source, at the end of training. The negative ELBO is in nats per image (sum of squared
errors plus KL), bits per dimension and PSNR as defined in the project's README.

| | |
|---|---|
{rows}

## Limits

It knows faces like those it was trained on, cut and centred as they were. Its pictures are averages of what the code
leaves open, so fine detail is soft. It is a toy for pictures and no means to recognise or to judge people.
"""


def _move_into_place(folder: Path, out: Path, replaced: Path) -> None:
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
