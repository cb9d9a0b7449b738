"""Write an exported model as a model repository of the NVIDIA Triton Inference Server: a folder with a config.pbtxt per
graph.

See "Model Repository" and "Model Configuration" at https://docs.nvidia.com/deeplearning/triton-inference-server, and
model_config.proto for the fields. Does not need torch.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vae_runtime.config import ModelConfig, Variant, graph_files
from vae_runtime.ort.graph import MAX_BATCH, Shapes
from vae_runtime.ort.verify import read_verified
from vae_train.errors import UsageError

PREFERRED = (8, 32, MAX_BATCH)
"""Preferred batch sizes; few, because kernels are tuned for each."""
DELAY = 1000
"""Maximum time in microseconds that a request waits to be batched with others."""

_CONFIG_FILE = "config.pbtxt"


def write_repository(folder: Path, out: Path, variant: Variant | None = None) -> list[Path]:
    """Write NAME_encoder and NAME_decoder into the model repository `out`, and return their folders.

    folder: an exported model. variant: "fp16" or "int8", appended to NAME; None: float32. Other models in `out` stay.
    Raises UsageError if one of the two exists already or `folder` lacks the variant; ModelFileError, ConfigError.
    """
    config = ModelConfig.load(folder)
    files = graph_files(variant)
    if not config.files.keys() >= set(files):
        raise UsageError(f"{folder}: variant {variant} is missing; add it with python -m vae_train variants")
    name = f"{config.name}-{variant}" if variant else config.name
    picture, code = (config.channels, config.image_size, config.image_size), (config.latent_dim,)
    graphs: dict[str, tuple[str, Shapes, Shapes]] = {
        f"{name}_encoder": (files[0], {"image": picture}, {"mu": code, "logvar": code}),
        f"{name}_decoder": (files[1], {"z": code}, {"image": picture}),
    }
    for model in graphs:
        if (out / model).exists():
            raise UsageError(f"{out / model}: already exists; remove it, or give another folder")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=out) as temporary:
        for model, (file, inputs, outputs) in graphs.items():
            version = Path(temporary) / model / "1"
            version.mkdir(parents=True)
            (version / "model.onnx").write_bytes(read_verified(folder / file, config.files[file]))
            text = model_config(model, inputs, outputs)
            (version.parent / _CONFIG_FILE).write_text(text, encoding="utf-8")
        for model in graphs:
            shutil.move(Path(temporary) / model, out / model)
    return [out / model for model in graphs]


def model_config(name: str, inputs: Shapes, outputs: Shapes) -> str:
    """The text of a config.pbtxt. inputs, outputs: shapes without the batch axis, which Triton adds; all are float32.

    KIND_AUTO: one instance per GPU, or one on the CPU.
    """
    ports = "\n".join(
        f'{kind} [\n  {{ name: "{port}" data_type: TYPE_FP32 dims: [ {", ".join(map(str, shape))} ] }}\n]'
        for kind, group in (("input", inputs), ("output", outputs))
        for port, shape in group.items()
    )
    return f"""name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {MAX_BATCH}
{ports}
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, PREFERRED))} ]
  max_queue_delay_microseconds: {DELAY}
}}
instance_group [
  {{ count: 1 kind: KIND_AUTO }}
]
"""
