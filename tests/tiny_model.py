"""A tiny model whose answers are plain NumPy, for tests that need one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from vae_runtime.config import DECODER_FILE, ENCODER_FILE, INVERSE_FILE, ModelConfig, TrainingData

SIZE, DIM = 8, 4
PIXELS = 3 * SIZE * SIZE


@dataclass(frozen=True)
class LinearModel:
    """mu = x W + b, logvar = -mu, image = sigmoid(z V): what the tiny graphs compute, in NumPy."""

    folder: Path
    w: np.ndarray = field(repr=False)  # hypothesis refuses long ones
    b: np.ndarray = field(repr=False)
    v: np.ndarray = field(repr=False)

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n, S, S, 3) -> mu, logvar"""
        x = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1) / 255
        mu = x @ self.w + self.b
        return mu, -mu

    def decode(self, z: np.ndarray) -> np.ndarray:
        """z (n, d) -> uint8 (n, S, S, 3)"""
        x = 1 / (1 + np.exp(-(z @ self.v)))
        return np.rint(x * 255).astype(np.uint8).reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)


def build_model(folder: Path, *, model_id: str = "tiny", seed: int = 0) -> LinearModel:
    """Write the tiny model into `folder`; tests that need one are skipped where onnx is not installed."""
    helper = pytest.importorskip("onnx").helper
    from vae_train.export.decoder_gradient import write_inverse

    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.1, (PIXELS, DIM)).astype(np.float32)
    b = rng.normal(0, 1, DIM).astype(np.float32)
    v = rng.normal(0, 1, (DIM, PIXELS)).astype(np.float32)
    shape = np.array([-1, 3, SIZE, SIZE], np.int64)
    encoder = _graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["mu"]),
            helper.make_node("Neg", ["mu"], ["logvar"]),
        ],
        {"image": ["batch", 3, SIZE, SIZE]},
        {"mu": ["batch", DIM], "logvar": ["batch", DIM]},
        {"w": w, "b": b},
        model_id,
    )
    decoder = _graph(
        [
            helper.make_node("MatMul", ["z", "v"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["image"]),
        ],
        {"z": ["batch", DIM]},
        {"image": ["batch", 3, SIZE, SIZE]},
        {"v": v, "shape": shape},
        model_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, data in ((ENCODER_FILE, encoder), (DECODER_FILE, decoder)):
        (folder / name).write_bytes(data)
        files[name] = hashlib.sha256(data).hexdigest()
    files[INVERSE_FILE] = write_inverse(folder)
    tiny_config(files, model_id=model_id).save(folder)
    return LinearModel(folder, w, b, v)


def tiny_config(files: dict[str, str] | None = None, **changes: object) -> ModelConfig:
    fields: dict[str, object] = {
        "name": "tiny",
        "image_size": SIZE,
        "latent_dim": DIM,
        "opset": 20,
        "preset": "classic",
        "likelihood": "mse",
        "beta": 1.0,
        "sigma": 0.1,
        "training_data": TrainingData(name="none", count=0, sha256="0" * 64),
        "metrics": {"psnr": 20.5},
        "model_id": "tiny",
        "files": files or {ENCODER_FILE: "0" * 64, DECODER_FILE: "1" * 64},
    }
    return ModelConfig(**(fields | changes))


def _graph(nodes: list, inputs: dict, outputs: dict, weights: dict, model_id: str) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def ports(described: dict) -> list:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in described.items()]

    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", ports(inputs), ports(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"model_id": model_id})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
