"""Networks filled from the graphs of an exported model: where fine-tuning and the second stage start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from vae_runtime.config import DECODER_FILE, ENCODER_FILE, ModelConfig
from vae_runtime.ort.verify import read_verified
from vae_train.errors import UsageError
from vae_train.model.networks import VAE

_FIRST_ADDED = 4
"""Place of the first additional block in the decoder of `base`: behind the linear map, its shape, the first convolution
and the first block."""


def load_exported(folder: Path) -> tuple[ModelConfig, VAE]:
    """The config of an exported model and its networks, BatchNorm folded away (`batch_norm=False`), in eval mode.

    Raises ModelFileError and ConfigError as `VAE.load` does, UsageError if the graphs are not those of a preset.
    """
    config = ModelConfig.load(folder)
    encoder, decoder = (_parameters(folder / file, config.files[file]) for file in (ENCODER_FILE, DECODER_FILE))
    plain = VAE(config.image_size, config.latent_dim, config.preset, batch_norm=False)
    blocks = _layers(decoder) - _layers(plain.decoder.state_dict())
    model = VAE(config.image_size, config.latent_dim, config.preset, blocks, batch_norm=False) if blocks > 0 else plain
    for network, parameters, file in ((model.encoder, encoder, ENCODER_FILE), (model.decoder, decoder, DECODER_FILE)):
        try:
            network.load_state_dict(parameters)
        except RuntimeError as error:
            raise UsageError(
                f"{folder / file}: not the graph of the preset {config.preset}, whose networks have other parameters; "
                "start from a model that this version exports"
            ) from error
    return config, model.eval()


def add_decoder_blocks(model: VAE, count: int) -> VAE:
    """The same model with `count` more residual blocks at the coarsest size of its decoder, BatchNorm folded away.

    The new blocks add nothing at first, so that the decoder's answers stay the same. model: with `batch_norm=False`.
    """
    if model.preset != "base":
        raise UsageError(f"--decoder-blocks {count}: only the preset base has residual blocks")
    wider = VAE(model.image_size, model.latent_dim, model.preset, model.decoder_blocks + count, batch_norm=False)
    first = _FIRST_ADDED + model.decoder_blocks
    weights = wider.state_dict()
    for name, value in model.state_dict().items():
        part, layers, number, *rest = name.split(".")
        if part == "decoder" and int(number) >= first:
            name = ".".join([part, layers, str(int(number) + count), *rest])
        weights[name] = value
    wider.load_state_dict(weights)
    for block in wider.decoder.layers[first : first + count]:
        last = block.layers[4]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return wider.train(model.training)


def _parameters(path: Path, sha256: str) -> dict[str, Tensor]:
    """The float32 initializers of a graph by the names of the network's parameters.

    The exporter names them so; a bias that BatchNorm was folded into is named `<weight>_bias`.
    """
    graph = onnx.load_from_string(read_verified(path, sha256)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        name.replace(".weight_bias", ".bias"): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if array.dtype == np.float32
    }


def _layers(parameters: dict[str, Tensor]) -> int:
    """Number of the last layer of a decoder that has parameters."""
    return max((int(name.split(".")[1]) for name in parameters if name.startswith("layers.")), default=0)
