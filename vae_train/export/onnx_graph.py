"""A torch module as a self-contained ONNX graph that is the same, byte by byte, on every machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import nn

from vae_train.errors import ExportError

OPSET = 20
"""From opset 22 on, ConvTranspose falls back to the CPU in WebGPU and in older CUDA providers."""


def to_onnx(module: nn.Module, example: torch.Tensor, input_name: str, output_names: list[str]) -> onnx.ModelProto:
    """Export a module as one checked graph whose only dynamic axis is the first one, `batch`.

    example: an input of the module, (2, ...). ExportError if torch returns no graph.
    """
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            optimize=True,
            verbose=False,
            input_names=[input_name],
            output_names=output_names,
            dynamic_shapes=({0: "batch"},),
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no graph; check the installed versions of torch and onnxscript")
    graph = strip(program.model_proto)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def strip(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Clear the exporter's notes in place: they hold source paths of the exporting machine."""
    graph.producer_name, graph.producer_version, graph.doc_string, graph.domain = "anime-vae", "", "", ""
    del graph.graph.value_info[:]
    graph.graph.name = "anime-vae"
    parts = [graph, graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own internals, which come both as warnings and as log records."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
