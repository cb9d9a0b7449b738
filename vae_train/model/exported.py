"""Networks filled from the graphs of an exported model: where fine-tuning and the second stage start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from vae_runtime.config import DECODER_FILE, ENCODER_FILE, ModelConfig
from vae_runtime.ort.verify import read_verified
from vae_train.config import STRIDE
from vae_train.errors import UsageError
from vae_train.model.networks import VAE
from vae_train.model.presets import BASE, FINE, PLAIN, PRESETS

_FIRST_BLOCK = 3
"""Place of the first block in the decoder of `base`: behind the linear map, its shape and the first convolution."""
_FINE_LAYER = "layers.4.layers.1.weight"
"""A parameter of the second block, which only the decoder "fine" has."""


def load_exported(folder: Path) -> tuple[ModelConfig, VAE]:
    """The config of an exported model and its networks, BatchNorm folded away (`batch_norm=False`), in eval mode.

    Raises ModelFileError and ConfigError as `VAE.load` does, UsageError if the graphs are not those of a preset.
    """
    config = ModelConfig.load(folder)
    encoder, decoder = (_parameters(folder / file, config.files[file]) for file in (ENCODER_FILE, DECODER_FILE))
    if config.preset not in PRESETS or config.image_size % STRIDE:
        raise UsageError(
            f"{folder}: a model of the preset {config.preset} with pictures of {config.image_size} pixels a side; "
            f"expected one of {' or '.join(PRESETS)} and a multiple of {STRIDE}"
        )
    fine = FINE in PRESETS[config.preset].decoders and _FINE_LAYER in decoder
    decoder_kind = FINE if fine else PLAIN
    model = VAE(config.image_size, config.latent_dim, config.preset, decoder_kind, batch_norm=False)
    for network, parameters, file in ((model.encoder, encoder, ENCODER_FILE), (model.decoder, decoder, DECODER_FILE)):
        try:
            network.load_state_dict(parameters)
        except RuntimeError as error:
            raise UsageError(
                f"{folder / file}: not the graph of the preset {config.preset}, whose networks have other parameters; "
                "start from a model that this version exports"
            ) from error
    return config, model.eval()


def with_fine_decoder(model: VAE) -> VAE:
    """The same model with the decoder "fine", BatchNorm folded away; as it is if it has that decoder already.

    What both decoders share is kept. The first block keeps the half of its hidden channels with the largest weights,
    the second one starts at nothing, and the last two layers at random: the result must be trained to draw like
    `model` before it is of use. model: of the preset base, with `batch_norm=False`; UsageError otherwise.
    """
    if model.preset != BASE.name:
        raise UsageError(f"--decoder fine: only the preset base has it, this model is of {model.preset}")
    if model.decoder_kind == FINE:
        return model
    fine = VAE(model.image_size, model.latent_dim, model.preset, FINE, batch_norm=False)
    fine.encoder.load_state_dict(model.encoder.state_dict())
    old: list[Any] = list(model.decoder.layers)
    new: list[Any] = list(fine.decoder.layers)
    wide = old.pop(_FIRST_BLOCK).layers
    narrow, added = new.pop(_FIRST_BLOCK).layers, new.pop(_FIRST_BLOCK).layers
    for before, after in zip(old[:-2], new, strict=False):  # all but the last map and the sigmoid
        after.load_state_dict(before.state_dict())
    with torch.no_grad():
        first, second = wide[1], wide[4]
        size = first.weight.square().sum((1, 2, 3)) * second.weight.square().sum((0, 2, 3))
        kept = size.topk(narrow[1].out_channels).indices.sort().values
        narrow[1].weight.copy_(first.weight[kept])
        narrow[1].bias.copy_(first.bias[kept])
        narrow[4].weight.copy_(second.weight[:, kept])
        narrow[4].bias.copy_(second.bias)
        nn.init.zeros_(added[4].weight)
        nn.init.zeros_(added[4].bias)
    return fine.train(model.training)


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
