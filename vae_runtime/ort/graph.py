"""One ONNX graph on one device: a session that keeps its contract, and the two ways to run it, CPU and CUDA.

On the CPU a graph is opened twice. The wide session puts all cores on one run, which suits one caller with few rows.
The narrow one gives each run one core, which suits many callers at once, and large batches, whose rows are spread over
the cores together with the turning of pixels into floats and back. Transposed convolutions gain most: ONNX Runtime
computes them picture by picture and little of it in parallel, so that a spread batch of 64 takes three quarters of the
time of a wide one (see `python -m vae_runtime benchmark`). Both give the same bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import DeviceError, InputError, ModelFileError
from vae_runtime.ort.devices import (
    CPU,
    CUDA,
    DeviceOptions,
    Provider,
    choose_providers,
    import_onnxruntime,
    preload_cuda,
    usable_cores,
    warn_once,
)
from vae_runtime.ort.layout import turn_last_convolution
from vae_runtime.ort.verify import Outline, outline

if TYPE_CHECKING:
    import onnxruntime

MAX_BATCH = 64
"""Rows of one run. Larger inputs are cut: the memory of one batch of 256 is several hundred MB, and not faster."""
BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that run on CUDA: others are padded to the next, because each new shape is tuned and allocated anew."""

_SPREAD = 32  # rows a core takes at a time when a batch is spread: more fall out of its cache
_WORTH_SPREADING = {True: 8, False: 32}  # rows, with and without transposed convolutions: below, one wide run is faster

Array: TypeAlias = NDArray[Any]
Ports: TypeAlias = dict[str, tuple[int, ...]]


class Graph:
    """An ONNX graph on a device. `run` may be called from many threads; a forked child opens its own sessions."""

    def __init__(self, model: bytes, name: str, inputs: Ports, outputs: Ports, options: DeviceOptions) -> None:
        """Open a graph and check its contract.

        model: the bytes of a self-contained .onnx file. name: for messages. inputs, outputs: the float32 ports that it
        must have, each of (batch, *shape). Raises ModelFileError, DeviceError, RuntimeMissingError.
        """
        self.name, self.inputs, self.outputs, self.options = name, inputs, outputs, options
        self.outline: Outline = outline(model, name)
        self._model = model
        self._open()
        try:
            self.check_contract()
            self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        except (UnicodeDecodeError, IndexError) as error:  # names that are no UTF-8, a port without axes
            raise ModelFileError(f"{name}: not the graph of a model of ours ({error}); export the run again") from error

    def _open(self) -> None:
        profile = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in self.inputs.items())
        providers = choose_providers(self.options, profile)
        threads = self.options.threads or usable_cores()
        self.session = open_session(self._model, self.name, providers, threads, self.outline)
        self.device = active_device(self.session, providers, self.options)
        self._process = os.getpid()
        kind, _, index = self.device.partition(":")
        if kind == "cuda":
            replay = self.options.cuda_graph
            self._runner: CpuRunner | BoundRunner | None = BoundRunner(
                self.session, (kind, int(index)), self.inputs, self.outputs, replay
            )
            return
        narrow = self.session
        if kind != "cpu":
            threads = 1  # an expert's provider has threads of its own
        elif threads > 1:
            narrow = open_session(self._model, self.name, providers, 1, self.outline)
        spread = _WORTH_SPREADING["ConvTranspose" in self.outline.operators]
        self._runner = CpuRunner(self.session, narrow, tuple(self.inputs), threads, spread)

    def check_contract(self) -> None:
        """Raise ModelFileError unless the graph has exactly the ports that were asked for."""
        for kind, wanted, ports in (
            ("inputs", self.inputs, self.session.get_inputs()),
            ("outputs", self.outputs, self.session.get_outputs()),
        ):
            got = {port.name: (port.type, tuple(port.shape[1:]), isinstance(port.shape[0], int)) for port in ports}
            if got != {name: ("tensor(float)", shape, False) for name, shape in wanted.items()}:
                shown = {port.name: [port.type, *port.shape] for port in ports}
                expected = {name: ["tensor(float)", "batch", *shape] for name, shape in wanted.items()}
                raise ModelFileError(f"{self.name}: {kind} are {shown}, expected {expected}; export the run again")

    def run(
        self,
        *values: Array,
        before: Callable[[Array], Array] | None = None,
        after: Callable[[Array], Array] | None = None,
    ) -> list[Array]:
        """All outputs for `values`, (n, ...) for each input in its order, n >= 0, in runs of at most `MAX_BATCH` rows.

        before: turns some rows of each of `values` into the graph's float32 input. after: turns each output of these
        rows into what is kept. Both run next to the graph, a part at a time, so that a large batch is never all floats.
        """
        if self._runner is None:
            raise InputError(f"{self.name}: closed; load the model again")
        if os.getpid() != self._process:
            self._reopen()

        def part(rows: slice, run: Run) -> list[Array]:
            entries = [value[rows] if before is None else before(value[rows]) for value in values]
            try:
                found = run(*entries)
            except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
                raise DeviceError(
                    f"{self.name}: a run of {len(entries[0])} rows failed on {self.device} ({_first_line(error)}); "
                    "if memory is short, give fewer rows at once or use device='cpu'"
                ) from error
            return found if after is None else [after(output) for output in found]

        parts = self._runner.each(len(values[0]), part)
        return parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]

    def close(self) -> None:
        """Free the sessions; a later `run` raises InputError."""
        if self._runner is not None:
            self._runner.close()
        self._runner = self.session = None

    def _reopen(self) -> None:
        """The threads of a session do not live on in a forked child, and a CUDA context may not be used there."""
        if self.device != "cpu":
            raise DeviceError(f"{self.name}: opened before os.fork() on {self.device}; load it in the child, or spawn")
        # A destructor would wait for ever for threads that were not copied, so the parent's sessions are never freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._runner))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.session))
        self._open()


Run: TypeAlias = Callable[..., list[Array]]
"""Some rows of each input -> those of each output."""
Part: TypeAlias = Callable[[slice, Run], list[Array]]


class CpuRunner:
    """Runs a graph on arrays as they are: wide for a lone caller, narrow for many, spread for large batches."""

    def __init__(
        self,
        wide: onnxruntime.InferenceSession,
        narrow: onnxruntime.InferenceSession,
        feeds: Sequence[str],
        threads: int,
        spread: int,
    ) -> None:
        """wide and narrow: the same graph with `threads` cores and with one. feeds: its inputs' names.

        spread: from how many rows on a batch is spread over the cores.
        """
        self.wide: Run = lambda *values: wide.run(None, dict(zip(feeds, values, strict=True)))
        self.narrow: Run = lambda *values: narrow.run(None, dict(zip(feeds, values, strict=True)))
        self.pool = ThreadPoolExecutor(threads, "vae-runtime") if threads > 1 else None
        self.threads, self.spread = threads, spread
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
            if alone and self.pool is not None and count >= self.spread:
                rows = cut(count, min(_SPREAD, -(-count // self.threads)))
                return list(self.pool.map(part, rows, [self.narrow] * len(rows)))
            run = self.wide if alone else self.narrow
            return [part(rows, run) for rows in cut(count, MAX_BATCH)]
        finally:
            with self._lock:
                self._callers -= 1


class BoundRunner:
    """Runs a graph on a device with memory of its own: inputs and outputs stay bound, one set of them a batch size.

    Rows are padded to the next of `BUCKETS`. With `replay`, ONNX Runtime captures a CUDA graph for each and replays it,
    which needs the addresses to stay. The buffers are shared, so that one lock guards them.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        device: tuple[str, int],
        inputs: Ports,
        outputs: Ports,
        replay: bool,
    ) -> None:
        """device: as ONNX Runtime names it, ("cuda", 0). replay: capture and replay CUDA graphs."""
        self._session, self._device, self._replay = session, device, replay
        self._inputs, self._outputs = inputs, outputs
        self._bound: dict[int, tuple[Any, list[Any], dict[str, Any], Any]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Free the buffers."""
        self._bound.clear()

    def each(self, count: int, part: Part) -> list[list[Array]]:
        """`part` of all rows from 0 to `count`, in order."""
        return [part(rows, self._run) for rows in cut(count, MAX_BATCH)]

    def _run(self, *values: Array) -> list[Array]:
        count = len(values[0])
        bucket = next(size for size in BUCKETS if size >= count)
        padded = [_padded(value, bucket) for value in values]
        with self._lock:
            if bucket not in self._bound:
                self._bound[bucket] = self._bind(bucket)
            binding, entries, exits, settings = self._bound[bucket]
            for entry, value in zip(entries, padded, strict=True):
                entry.update_inplace(value)
            self._session.run_with_iobinding(binding, settings)
            return [exits[name].numpy()[:count].copy() for name in self._outputs]  # the buffers live on

    def _bind(self, bucket: int) -> tuple[Any, list[Any], dict[str, Any], Any]:
        ort = import_onnxruntime()

        def buffer(shape: tuple[int, ...]) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type((bucket, *shape), np.float32, *self._device)

        entries = {name: buffer(size) for name, size in self._inputs.items()}
        exits = {name: buffer(size) for name, size in self._outputs.items()}
        binding = self._session.io_binding()
        for name, value in entries.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in exits.items():
            binding.bind_ortvalue_output(name, value)
        settings = ort.RunOptions()
        if self._replay:
            settings.add_run_config_entry("gpu_graph_id", str(bucket))
        return binding, list(entries.values()), exits, settings


def _padded(values: Array, count: int) -> Array:
    """`values` with rows of zeros behind them, `count` in all."""
    if len(values) == count:
        return values
    padded = np.zeros((count, *values.shape[1:]), np.float32)
    padded[: len(values)] = values
    return padded


def cut(count: int, size: int) -> list[slice]:
    """The rows from 0 to `count` in slices of at most `size`; one empty slice for none."""
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), max(size, 1))]


def open_session(
    model: bytes, name: str, providers: Sequence[Provider], threads: int, found: Outline
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session; ModelFileError if the graph cannot be opened."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # The arena keeps the memory of the largest batch for ever, and is no faster on a CPU.
    options.enable_cpu_mem_arena = False
    if found.operators["ConvTranspose"] > found.operators["Conv"]:
        # The blocked layout knows no transposed convolution, and only costs its turning to and fro.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        if providers == [CPU]:
            return ort.InferenceSession(turn_last_convolution(model), options, providers=[CPU], enable_fallback=0)
        # Where another provider fails to start, ONNX Runtime prints so to stdout and goes on without it.
        with contextlib.redirect_stdout(io.StringIO()):
            return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ModelFileError(
            f"{name}: ONNX Runtime {ort.__version__} cannot open it, opset {found.opset} ({_first_line(error)}); "
            "export it again, or update ONNX Runtime"
        ) from error


def active_device(session: onnxruntime.InferenceSession, asked: Sequence[Provider], options: DeviceOptions) -> str:
    """ "cpu" or "cuda:n", read from the session. DeviceError where another was asked for by name, else one warning."""
    active = session.get_providers()
    first = asked[0] if isinstance(asked[0], str) else asked[0][0]
    if active[0] != first:
        # Where a library is missing, this says which: ONNX Runtime itself logs it at a level that is turned off.
        missing = preload_cuda() if CUDA in (first, *(p[0] for p in asked if isinstance(p, tuple))) else ""
        reason = f"ONNX Runtime could not start {first}" + (f": {missing[:160]}" if missing else "")
        remedy = 'pip install "anime-vae[gpu]" brings the CUDA and cuDNN libraries that it needs'
        if options.request[0] == "cuda" or options.providers is not None or options.tensorrt:
            raise DeviceError(f"{first} was asked for and cannot be had: {reason}; {remedy}")
        warn_once(f"running on the CPU: {reason}; {remedy}")
    settings = session.get_provider_options().get(CUDA)
    if settings is None:
        return "cpu" if active[0] == CPU else active[0].removesuffix("ExecutionProvider").lower()
    return f"cuda:{settings.get('device_id', '0')}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
