"""An exported model as a model repository of the NVIDIA Triton Inference Server: for each graph, a folder with a
config.pbtxt.

https://docs.nvidia.com/deeplearning/triton-inference-server, "Model Repository" and "Model Configuration"; the messages
are those of model_config.proto. No torch is needed.
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
"""Preferred batch sizes: few, because a GPU tunes its kernels for each."""
DELAY = 1000
"""Longest time that a request waits for others to share its batch, in microseconds."""

_CONFIG_FILE = "config.pbtxt"


def write_repository(folder: Path, out: Path, variant: Variant | None = None) -> list[Path]:
    """Write NAME_encoder and NAME_decoder into the model repository `out`, and return their folders.

    folder: an exported model. variant: "fp16" or "int8", which is added to NAME; float32 if None. Other models in `out`
    stay. Raises UsageError if one of these is there already, or `folder` has no such variant; ModelFileError,
    ConfigError.
    """
    config = ModelConfig.load(folder)
    files = graph_files(variant)
    if not config.files.keys() >= set(files):
        raise UsageError(f"{folder}: has no variant {variant}; python -m vae_train variants makes one")
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
    """The text of a config.pbtxt for float32 ports of (batch, *shape): Triton adds the batch to each shape itself.

    KIND_AUTO: an instance on each GPU, or on the CPU where there is none.
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
