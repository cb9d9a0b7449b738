"""The training step on a CUDA device: compiled, and recorded as one CUDA graph, so that a step costs one launch instead
of some hundred. On a CPU neither pays: see the README."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._triton import has_triton

Step: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""pixels, views, eps, kernels, dials -> None: see `train.train_step`."""

_WARM_UP = 3


def compiled(network: Any, device: torch.device) -> Any:
    """The network with its kernels fused by torch.compile, on a CUDA device that has Triton; else as it is."""
    if device.type == "cuda" and has_triton():
        return torch.compile(network)
    return network


def captured(step: Step, *examples: Tensor) -> Step:
    """`step` as a CUDA graph for inputs of the shapes of `examples`; `step` itself, with a warning, if that fails.

    It is warmed up and recorded with noise that is no number: such a step skips itself, so nothing of the state moves.
    """
    inputs = tuple(example.clone() for example in examples)
    inputs[2].fill_(float("nan"))
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                step(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(*inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"warning: no CUDA graph of the step ({str(error).splitlines()[0]}); going on without", file=sys.stderr)
        return step

    def replay(*given: Tensor) -> None:
        for place, value in zip(inputs, given, strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()

    return replay
