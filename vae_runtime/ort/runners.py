"""The two ways to run an opened graph: on the CPU, and bound to the memory of a device.

On the CPU a graph is opened twice. The multi-threaded session puts all cores on one run, which suits one caller with
few rows. The single-threaded one gives each run one core, which suits many callers at once, and large batches, which
are sharded over the cores together with their pre- and postprocessing. ONNX Runtime computes transposed convolutions
picture by picture with little parallelism, so that a sharded batch of 64 takes three quarters of the time of a
multi-threaded run (`python -m benchmarks inference`). All give the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae_runtime.ort.devices import import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

MAX_BATCH = 64
"""Rows of one run; larger inputs are split. A batch of 256 takes several hundred MB and is not faster."""
BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that run on CUDA. Others are padded to the next one: each new shape is tuned and allocated anew."""

# Rows of a run on one core: more fall out of its cache. Measured at 64x64: 64 rows at once take 1.5 times as long a row
# as 24 for the decoder "fine", whose activations at full size are the largest, and 1.05 times for "plain".
_SHARD = 24

Array: TypeAlias = NDArray[Any]
Shapes: TypeAlias = dict[str, tuple[int, ...]]
"""Name of an input or output -> its shape without the batch."""
Run: TypeAlias = Callable[..., list[Array]]
"""Some rows of each input -> those of each output."""
Part: TypeAlias = Callable[[slice, Run], list[Array]]


class CpuRunner:
    """Runs a graph on arrays as they are: multi-threaded for one caller, single-threaded for many, or sharded."""

    def __init__(
        self,
        multi_threaded: onnxruntime.InferenceSession,
        single_threaded: onnxruntime.InferenceSession,
        inputs: Sequence[str],
        threads: int,
        shard_from: int,
    ) -> None:
        """The same graph opened with `threads` cores and with one. inputs: their names, in order.

        shard_from: number of rows from which a batch is sharded over the cores.
        """
        self.multi_threaded: Run = lambda *values: multi_threaded.run(None, dict(zip(inputs, values, strict=True)))
        self.single_threaded: Run = lambda *values: single_threaded.run(None, dict(zip(inputs, values, strict=True)))
        self.pool = ThreadPoolExecutor(threads, "vae-runtime") if threads > 1 else None
        self._threads, self._shard_from = threads, shard_from
        self._callers, self._lock = 0, threading.Lock()

    def close(self) -> None:
        """End the threads."""
        if self.pool is not None:
            self.pool.shutdown()

    def each(self, count: int, part: Part) -> list[list[Array]]:
        """`part` of all rows from 0 to `count`, in order."""
        with self._lock:
            alone = self._callers == 0
            self._callers += 1
        try:
            if alone and self.pool is not None and count >= self._shard_from:
                rows = split(count, min(_SHARD, -(-count // self._threads)))
                return list(self.pool.map(part, rows, [self.single_threaded] * len(rows)))
            run = self.multi_threaded if alone else self.single_threaded
            size = MAX_BATCH if alone and self.pool is not None else _SHARD
            return [part(rows, run) for rows in split(count, size)]
        finally:
            with self._lock:
                self._callers -= 1


class BoundRunner:
    """Runs a graph on a device with its own memory: inputs and outputs stay bound, one set of buffers a batch size.

    Rows are padded to the next of `BUCKETS`. With `cuda_graph`, ONNX Runtime captures a CUDA graph for each bucket and
    replays it, which needs constant addresses. A lock guards the buffers, which all callers share.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        device: tuple[str, int],
        inputs: Shapes,
        outputs: Shapes,
        cuda_graph: bool,
    ) -> None:
        """device: in ONNX Runtime's terms, ("cuda", 0). cuda_graph: capture and replay CUDA graphs."""
        self._session, self._device, self._cuda_graph = session, device, cuda_graph
        self._inputs, self._outputs = inputs, outputs
        self._bound: dict[int, tuple[Any, list[Any], dict[str, Any], Any]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Free the buffers."""
        self._bound.clear()

    def each(self, count: int, part: Part) -> list[list[Array]]:
        """`part` of all rows from 0 to `count`, in order."""
        return [part(rows, self._run) for rows in split(count, MAX_BATCH)]

    def _run(self, *values: Array) -> list[Array]:
        count = len(values[0])
        bucket = next(size for size in BUCKETS if size >= count)
        padded = [_padded(value, bucket) for value in values]
        with self._lock:
            if bucket not in self._bound:
                self._bound[bucket] = self._bind(bucket)
            binding, inputs, outputs, options = self._bound[bucket]
            for buffer, value in zip(inputs, padded, strict=True):
                buffer.update_inplace(value)
            self._session.run_with_iobinding(binding, options)
            return [outputs[name].numpy()[:count].copy() for name in self._outputs]  # the buffers are used again

    def _bind(self, bucket: int) -> tuple[Any, list[Any], dict[str, Any], Any]:
        ort = import_onnxruntime()

        def buffer(shape: tuple[int, ...]) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type((bucket, *shape), np.float32, *self._device)

        inputs = {name: buffer(shape) for name, shape in self._inputs.items()}
        outputs = {name: buffer(shape) for name, shape in self._outputs.items()}
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        options = ort.RunOptions()
        if self._cuda_graph:
            options.add_run_config_entry("gpu_graph_id", str(bucket))
        return binding, list(inputs.values()), outputs, options


def _padded(values: Array, count: int) -> Array:
    """`values` followed by rows of zeros, `count` in all."""
    if len(values) == count:
        return values
    padded = np.zeros((count, *values.shape[1:]), np.float32)
    padded[: len(values)] = values
    return padded


def split(count: int, size: int) -> list[slice]:
    """The rows from 0 to `count` in slices of at most `size`; one empty slice for none."""
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), max(size, 1))]
