"""One ONNX graph on one device: a session that keeps its contract."""

from __future__ import annotations

import contextlib
import ctypes
import io
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_runtime.errors import DeviceError, InputError, ModelFileError
from vae_runtime.forks import reset_in_children
from vae_runtime.install import install_command
from vae_runtime.ort.devices import (
    CPU,
    CUDA,
    DeviceOptions,
    Provider,
    choose_providers,
    free_cores,
    import_onnxruntime,
    preload_cuda,
    warn_once,
)
from vae_runtime.ort.runners import MAX_BATCH, Array, BoundRunner, CpuRunner, Run, Shapes
from vae_runtime.ort.verify import GraphSummary, graph_summary

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["MAX_BATCH", "Graph", "Shapes", "active_device", "open_session"]

# Rows from which sharding a batch is faster, with and without transposed convolutions.
_SHARD_FROM = {True: 8, False: 32}


class Graph:
    """An ONNX graph on a device. `run` may be called from many threads; a forked child opens its own sessions."""

    def __init__(self, model: bytes, name: str, inputs: Shapes, outputs: Shapes, options: DeviceOptions) -> None:
        """Open a graph and check its contract.

        model: the bytes of a self-contained .onnx file. name: for messages. inputs, outputs: the float32 tensors that
        it must have, each of (batch, *shape). Raises ModelFileError, DeviceError, RuntimeMissingError.
        """
        self.name, self.inputs, self.outputs, self.options = name, inputs, outputs, options
        self.summary: GraphSummary = graph_summary(model, name)
        self._model = model
        self._runner: CpuRunner | BoundRunner | None = None
        self._forked, self._lock = False, threading.Lock()
        self._open()
        try:
            self._check_contract()
            self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        except (UnicodeDecodeError, IndexError) as error:  # names that are not UTF-8, a tensor without axes
            raise ModelFileError(f"{name}: not a graph of an exported model ({error}); export the run again") from error
        reset_in_children(self)

    def _open(self) -> None:
        profile = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in self.inputs.items())
        providers = choose_providers(self.options, profile)
        threads = self.options.threads or free_cores()
        session = open_session(self._model, self.name, providers, threads, self.summary)
        self.device = active_device(session, providers, self.options)
        kind, _, index = self.device.partition(":")
        if kind == "cuda":
            device, cuda_graph = (kind, int(index)), self.options.cuda_graph
            self._runner = BoundRunner(session, device, self.inputs, self.outputs, cuda_graph)
        else:
            single = session
            if kind != "cpu":
                threads = 1  # a provider given by name has threads of its own
            elif threads > 1:
                single = open_session(self._model, self.name, providers, 1, self.summary)
            shard_from = _SHARD_FROM["ConvTranspose" in self.summary.operators]
            self._runner = CpuRunner(session, single, tuple(self.inputs), threads, shard_from)
        self.threads = threads
        self.session = session

    def _check_contract(self) -> None:
        for kind, wanted, tensors in (
            ("inputs", self.inputs, self.session.get_inputs()),
            ("outputs", self.outputs, self.session.get_outputs()),
        ):
            got = {item.name: (item.type, tuple(item.shape[1:]), isinstance(item.shape[0], int)) for item in tensors}
            if got != {name: ("tensor(float)", shape, False) for name, shape in wanted.items()}:
                shown = {item.name: [item.type, *item.shape] for item in tensors}
                expected = {name: ["tensor(float)", "batch", *shape] for name, shape in wanted.items()}
                raise ModelFileError(f"{self.name}: {kind} are {shown}, expected {expected}; export the run again")

    def run(
        self,
        *values: Array,
        preprocess: Callable[[Array], Array] | None = None,
        postprocess: Callable[[Array], Array] | None = None,
    ) -> list[Array]:
        """All outputs for `values`, (n, ...) for each input in its order, n >= 0, in runs of at most `MAX_BATCH` rows.

        preprocess: turns some rows of each of `values` into float32 input. postprocess: turns each output of these rows
        into what is kept. Both run beside the graph, part by part, so that a large batch is never all floats at once.
        Raises DeviceError where a run fails, ModelFileError where an output has NaN or infinity.
        """
        runner = self._ready()

        def part(rows: slice, run: Run) -> list[Array]:
            inputs = [value[rows] if preprocess is None else preprocess(value[rows]) for value in values]
            try:
                outputs = run(*inputs)
            except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
                raise DeviceError(
                    f"{self.name}: a run of {len(inputs[0])} rows failed on {self.device} ({_first_line(error)}); "
                    "if memory is short, give fewer rows at once or use device='cpu'"
                ) from error
            if not all(np.isfinite(output).all() for output in outputs):
                raise ModelFileError(f"{self.name}: its output is not finite; export it again, or use another variant")
            return outputs if postprocess is None else [postprocess(output) for output in outputs]

        parts = runner.each(len(values[0]), part)
        return parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _ready(self) -> CpuRunner | BoundRunner:
        """The runner; in a forked child, the first caller opens it and the others wait."""
        if self._forked:
            with self._lock:
                if self._forked:
                    if self.device != "cpu":
                        message = (
                            f"{self.name}: opened on {self.device} before os.fork(); load it in the child, or spawn"
                        )
                        raise DeviceError(message)
                    self._open()
                    self._forked = False
        if self._runner is None:
            raise InputError(f"{self.name}: closed; load the model again")
        return self._runner

    def close(self) -> None:
        """Free the sessions; a later `run` raises InputError."""
        if self._runner is not None and not self._forked:
            self._runner.close()
        self._runner = self.session = None
        self._forked = False

    def _after_fork(self) -> None:
        """In a forked child: the threads of the sessions do not exist here, and a lock may be held by one of them."""
        self._lock = threading.Lock()
        if self._runner is not None:
            # Their destructors would wait forever for these threads, so the parent's sessions are never freed here.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._runner))
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.session))
            self._forked = True


def open_session(
    model: bytes, name: str, providers: Sequence[Provider], threads: int, summary: GraphSummary
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session; ModelFileError if the graph cannot be opened."""
    ort, options = import_onnxruntime(), session_options()
    options.intra_op_num_threads = threads
    # The arena keeps the memory of the largest batch forever, and is no faster on a CPU.
    options.enable_cpu_mem_arena = False
    if summary.operators["ConvTranspose"] > summary.operators["Conv"]:
        # The blocked layout has no transposed convolution, so that its conversions only cost time.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        if providers == [CPU]:
            return ort.InferenceSession(model, options, providers=[CPU], enable_fallback=0)
        # Where another provider fails to start, ONNX Runtime prints so to stdout and goes on without it.
        with contextlib.redirect_stdout(io.StringIO()):
            return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions have no base class but Exception
        raise ModelFileError(
            f"{name}: ONNX Runtime {ort.__version__} cannot open it, opset {summary.opset} ({_first_line(error)}); "
            "export it again, or update ONNX Runtime"
        ) from error


def session_options() -> onnxruntime.SessionOptions:
    """What every session is opened with."""
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    # A file can be of ONNX and of ONNX Runtime's own format at once; what is opened has to be what was checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def active_device(session: onnxruntime.InferenceSession, asked: Sequence[Provider], options: DeviceOptions) -> str:
    """ "cpu" or "cuda:n", read from the session. DeviceError where another was asked for by name, else one warning."""
    active = session.get_providers()
    first = asked[0] if isinstance(asked[0], str) else asked[0][0]
    if active[0] != first:
        # Where a library is missing, this names it: ONNX Runtime logs it at a level that is turned off.
        missing = preload_cuda() if CUDA in (first, *(p[0] for p in asked if isinstance(p, tuple))) else ""
        reason = f"ONNX Runtime could not start {first}" + (f": {missing[:160]}" if missing else "")
        remedy = f"{install_command('gpu')} brings the CUDA and cuDNN libraries that it needs"
        if options.request[0] == "cuda" or options.providers is not None or options.tensorrt:
            raise DeviceError(f"{first} was asked for and cannot be used: {reason}; {remedy}")
        warn_once(f"running on the CPU: {reason}; {remedy}")
    settings: dict[str, Any] | None = session.get_provider_options().get(CUDA)
    if settings is None:
        return "cpu" if active[0] == CPU else active[0].removesuffix("ExecutionProvider").lower()
    return f"cuda:{settings.get('device_id', '0')}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
