"""Compile a training step on a CUDA device and record it as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._triton import has_triton

_WARM_UP = 3

Tensors = TypeVar("Tensors", bound=tuple[Any, ...])


def compile_network(network: Any, device: torch.device) -> Any:
    """The network with its kernels fused by torch.compile, on a CUDA device that has Triton; else as it is."""
    if device.type == "cuda" and has_triton():
        return torch.compile(network)
    return network


def capture(step: Callable[[Tensors], None], example: Tensors) -> Callable[[Tensors], None]:
    """`step` as a CUDA graph for tensors of the shapes of `example`; `step` itself, with a warning, if that fails.

    example: a named tuple of tensors, with which the step is warmed up and recorded; it runs several times.
    """
    inputs = type(example)(*(tensor.clone() for tensor in example))
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                step(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"warning: no CUDA graph of the step ({str(error).splitlines()[0]}); going on without", file=sys.stderr)
        return step

    def replay(given: Tensors) -> None:
        for place, value in zip(inputs, given, strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()

    return replay
