"""Runtimes that can run an exported graph, a small class each: what `parity` compares and `inference` races.

Each imports its package when it is asked for, so that a missing one is reported and the others run. To add a runtime,
write a class with a name, a version and `open`, and list it in `for_parity` or `for_speed`.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import RuntimeMissingError
from vae_runtime.ort.devices import (
    CPU,
    CUDA,
    TENSORRT,
    DeviceOptions,
    import_onnxruntime,
    preload_cuda,
    usable_cores,
    why_not_cuda,
)
from vae_runtime.ort.graph import Graph, Shapes

if TYPE_CHECKING:
    from torch import nn

FLOAT32 = 1e-5
"""Largest difference of a runtime that computes in float32, as `benchmarks.parity.difference` measures it."""
TF32 = 1e-3
"""The same where a GPU may round the factors of a product to 10 bits of mantissa, as NVIDIA's do by default."""

_WORKER = Path(__file__).with_name("runtimes.mjs")
_TIMEOUT = 600.0  # seconds for one graph in a browser: a software GPU takes minutes
_TIMED = 0.2  # seconds of runs of one batch, of which the fastest counts

Array: TypeAlias = NDArray[Any]
Run: TypeAlias = Callable[[Array], Sequence[Any]]


@dataclass(frozen=True)
class GraphFile:
    """A graph, as a runtime gets it."""

    data: bytes
    """An .onnx file."""
    inputs: Shapes
    """Name of its input and its shape without the batch."""
    outputs: Shapes
    folder: Path
    """The model that it belongs to."""


@dataclass(frozen=True)
class Answer:
    """The outputs of a runtime for one batch."""

    outputs: list[Array]
    seconds: float
    """Time of the fastest of a few runs."""


class Runtime(ABC):
    """A runtime."""

    name: str
    tolerance: float | None = FLOAT32
    """Largest difference from the reference that passes; None: shown, not judged."""
    max_batch: ClassVar[int | None] = None
    """Largest batch, for a runtime that is too slow for more."""

    @abstractmethod
    def version(self) -> str:
        """The installed version; any exception says why it cannot be used."""

    @abstractmethod
    def answers(self, graph: GraphFile, batches: Sequence[Array], threads: int) -> list[Answer | str]:
        """The outputs for each batch (n, ...), or why it failed."""


class LocalRuntime(Runtime):
    """A runtime in this process."""

    @abstractmethod
    def open(self, graph: GraphFile, threads: int) -> Run:
        """A function from one batch, float32 (n, ...), to all outputs of the graph, in their order."""

    def answers(self, graph: GraphFile, batches: Sequence[Array], threads: int) -> list[Answer | str]:
        try:
            run = self.open(graph, threads)
        except Exception as error:  # each runtime has exceptions of its own
            return [first_line(error)] * len(batches)
        return [self._answer(run, values) for values in batches]

    def _answer(self, run: Run, values: Array) -> Answer | str:
        try:
            outputs = [np.array(output, np.float32) for output in run(values)]
            times: list[float] = []
            while sum(times) < _TIMED:
                start = time.perf_counter()
                run(values)
                times.append(time.perf_counter() - start)
            return Answer(outputs, min(times))
        except Exception as error:
            return first_line(error)


def first_line(error: Exception) -> str:
    """The first line of an error message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


# ---- ONNX Runtime ---------------------------------------------------------------------------------------------------


class VaeRuntime(LocalRuntime):
    """`vae_runtime` on the CPU, or on CUDA with its inputs and outputs bound to the GPU's memory."""

    def __init__(self, device: str = "cpu", cuda_graph: bool = False) -> None:
        self.device, self.cuda_graph = device, cuda_graph
        self.tolerance = FLOAT32 if device == "cpu" else TF32
        self.name = "vae_runtime" if device == "cpu" else f"vae_runtime CUDA{', CUDA graphs' if cuda_graph else ''}"

    def version(self) -> str:
        if self.device != "cpu" and (reason := why_not_cuda()):
            raise RuntimeMissingError(reason)
        return f"on onnxruntime {import_onnxruntime().__version__}"

    def open(self, graph: GraphFile, threads: int) -> Run:
        options = DeviceOptions(device=self.device, threads=threads, cuda_graph=self.cuda_graph)
        return Graph(graph.data, self.name, graph.inputs, graph.outputs, options).run


class Onnxruntime(LocalRuntime):
    """A bare ONNX Runtime session."""

    def __init__(self, name: str = "onnxruntime", provider: str = CPU, tolerance: float = FLOAT32) -> None:
        self.name, self.provider, self.tolerance = name, provider, tolerance

    def version(self) -> str:
        ort = import_onnxruntime()
        if self.provider != CPU:
            if reason := why_not_cuda():
                raise RuntimeMissingError(reason)
            preload_cuda()
        if self.provider not in ort.get_available_providers():
            raise RuntimeMissingError(f"the installed onnxruntime has no {self.provider}")
        return str(ort.__version__)

    def open(self, graph: GraphFile, threads: int) -> Run:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads != usable_cores():
            options.intra_op_num_threads = threads
        session = ort.InferenceSession(graph.data, options, providers=[self.provider])
        if session.get_providers()[0] != self.provider:
            raise RuntimeMissingError(f"onnxruntime could not start {self.provider}")
        (name,) = graph.inputs
        return lambda values: session.run(None, {name: values})


# ---- other runtimes in Python ---------------------------------------------------------------------------------------


class OpenVino(LocalRuntime):
    """OpenVINO on the CPU, in float32 or in the precision that it chooses (bfloat16 where the processor has it)."""

    def __init__(self, float32: bool = True) -> None:
        self.name = "openvino" if float32 else "openvino, its own precision"
        self.tolerance = FLOAT32 if float32 else None
        self._precision = {"INFERENCE_PRECISION_HINT": "f32"} if float32 else {}

    def version(self) -> str:
        import openvino

        return str(openvino.__version__).split("-")[0]

    def open(self, graph: GraphFile, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        settings = self._precision | {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)}
        request = core.compile_model(core.read_model(graph.data), "CPU", settings).create_infer_request()

        def run(values: Array) -> Sequence[Any]:
            found = request.infer({0: values}, share_inputs=True, share_outputs=True)
            return [found[index] for index in range(len(graph.outputs))]

        return run


class OpenCv(LocalRuntime):
    """OpenCV's dnn module, with the engine of OpenCV 5 or the one before."""

    def __init__(self, engine: str = "new") -> None:
        self.name, self._engine = f"opencv dnn, {engine} engine", f"ENGINE_{engine.upper()}"

    def version(self) -> str:
        import cv2

        return str(cv2.__version__)

    def open(self, graph: GraphFile, threads: int) -> Run:
        import cv2

        cv2.setNumThreads(threads)
        net = cv2.dnn.readNetFromONNX(np.frombuffer(graph.data, np.uint8), getattr(cv2.dnn, self._engine))

        def run(values: Array) -> Sequence[Any]:
            net.setInput(values)
            return list(net.forward(list(graph.outputs)))

        return run


class OnnxReference(LocalRuntime):
    """The evaluator of the package onnx, which defines the operators; pure Python, slow at transposed convolutions."""

    name = "onnx.reference"
    max_batch = 2

    def version(self) -> str:
        import onnx

        return str(onnx.__version__)

    def open(self, graph: GraphFile, threads: int) -> Run:
        import onnx
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(onnx.load_from_string(graph.data))
        (name,) = graph.inputs
        return lambda values: list(evaluator.run(None, {name: values}))


class Tract(LocalRuntime):
    """Sonos' tract, written in Rust."""

    name = "tract"

    def version(self) -> str:
        return metadata.version("tract")

    def open(self, graph: GraphFile, threads: int) -> Run:
        import tract

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            path.write_bytes(graph.data)
            model = tract.onnx().load(path).into_model().into_runnable()
        return lambda values: [output.to_numpy() for output in model.run([values])]


class TorchEager(LocalRuntime):
    """The trainer's own network with the weights of the float32 graph, where BatchNorm is folded, which helps torch."""

    name = "torch eager"

    def version(self) -> str:
        import torch

        return str(torch.__version__)

    def open(self, graph: GraphFile, threads: int) -> Run:
        import torch

        from vae_train.model.exported import load_exported

        torch.set_num_threads(threads)
        _, model = load_exported(graph.folder)
        network = self.prepare(model.encoder if "image" in graph.inputs else model.decoder)

        def run(values: Array) -> Sequence[Any]:
            with torch.inference_mode():
                outputs = network(torch.from_numpy(values))
            return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

        return run

    def prepare(self, network: nn.Module) -> Callable[..., Any]:
        """What is called for each batch."""
        return network


class TorchCompiled(TorchEager):
    """The same through torch.compile, once for each batch size."""

    name = "torch.compile"

    def prepare(self, network: nn.Module) -> Callable[..., Any]:
        import torch

        compiled: Callable[..., Any] = torch.compile(network, dynamic=False)
        return compiled


# ---- runtimes in JavaScript -----------------------------------------------------------------------------------------


class JavaScriptRuntime(Runtime):
    """A runtime from npm, in its own process, which fetches its job from a local server and posts the outputs."""

    package: str

    def __init__(self, modules: Path) -> None:
        """modules: the folder `node_modules` that holds the package."""
        self.modules = modules.resolve()
        self._note = ""

    def version(self) -> str:
        path = self.modules / self.package / "package.json"
        if not path.is_file():
            raise RuntimeMissingError(f"no {self.package} in {self.modules.name}; npm install {self.package}")
        self.program()
        return str(json.loads(path.read_text(encoding="utf-8"))["version"])

    @abstractmethod
    def program(self) -> list[str]:
        """The command that runs JavaScript; its last argument will be an address."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, str]:
        """What the worker must know beside the graph."""

    def answers(self, graph: GraphFile, batches: Sequence[Array], threads: int) -> list[Answer | str]:
        (name,) = graph.inputs
        job = self.settings | {
            "graph": base64.b64encode(graph.data).decode(),
            "input": name,
            "outputs": list(graph.outputs),
            "batches": [{"dims": values.shape, "data": _packed(values)} for values in batches],
            "milliseconds": 1000 * _TIMED,
        }
        found = _ask(self.program(), job, self.modules / self.package)
        if "error" in found:
            return [str(found["error"])[:100]] * len(batches)
        return [_unpacked(answer) for answer in found["answers"]]


class Node(JavaScriptRuntime):
    """onnxruntime-node."""

    name = package = "onnxruntime-node"

    def program(self) -> list[str]:
        return [_find("node"), str(_WORKER)]

    @property
    def settings(self) -> dict[str, str]:
        return {"kind": "node", "modules": str(self.modules)}


class Web(JavaScriptRuntime):
    """onnxruntime-web in a headless Chromium, on WebAssembly (one thread) or on WebGPU."""

    package = "onnxruntime-web"

    def __init__(self, modules: Path, provider: str) -> None:
        """provider: "wasm" or "webgpu"."""
        super().__init__(modules)
        self.name, self._provider = f"{self.package}, {provider}", provider

    def version(self) -> str:
        version = super().version()
        if self._provider == "wasm":
            return version
        found = _ask(self.program(), {"kind": "adapter"}, self.modules / self.package)
        if "adapter" not in found:
            raise RuntimeMissingError(str(found.get("error", "this Chromium has no WebGPU adapter"))[:100])
        return f"{version}, {found['adapter']}"

    def program(self) -> list[str]:
        # The last four give a software adapter where there is no GPU.
        options = (
            "--headless=new --no-sandbox --disable-dev-shm-usage --no-first-run --disable-background-networking "
            "--enable-unsafe-webgpu --use-webgpu-adapter=swiftshader --enable-features=Vulkan --ignore-gpu-blocklist"
        )
        return [_find("chromium", "chromium-browser", "google-chrome"), *options.split()]

    @property
    def settings(self) -> dict[str, str]:
        return {"kind": self._provider}


def _find(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    raise RuntimeMissingError(f"{names[0]} is not installed")


def _packed(values: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _unpacked(answer: dict[str, Any]) -> Answer | str:
    if "error" in answer:
        return str(answer["error"])[:100]
    outputs = [
        np.frombuffer(base64.b64decode(output["data"]), "<f4").reshape(output["dims"]) for output in answer["outputs"]
    ]
    return Answer(outputs, answer["milliseconds"] / 1000)


def _ask(program: list[str], job: dict[str, Any], package: Path) -> dict[str, Any]:
    """Start `program` on the address of a server that has the job for it, and wait for its answer."""
    done = threading.Event()
    found: dict[str, Any] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(job, package / "dist", found, done))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        address = f"http://127.0.0.1:{server.server_port}/"
        command = [*program, *([f"--user-data-dir={profile}"] if "--headless=new" in program else []), address]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + _TIMEOUT
            while not done.wait(0.1) and process.poll() is None and time.monotonic() < end:
                pass
        finally:
            process.kill()
            process.wait()
            server.shutdown()
            server.server_close()
            thread.join()
    return found if done.is_set() else {"error": f"{Path(program[0]).name} ended without an answer"}


def _handler(
    job: dict[str, Any], dist: Path, found: dict[str, Any], done: threading.Event
) -> type[BaseHTTPRequestHandler]:
    """A handler that serves a page, the worker, the engine's files and the job, and takes the answer into `found`."""
    script = "text/javascript"
    kinds = {".mjs": script, ".wasm": "application/wasm"}
    pages = {
        "": (b"<!doctype html><link rel=icon href=data:,><script type=module src=runtimes.mjs></script>", "text/html"),
        "job": (json.dumps(job).encode(), "application/json"),
        _WORKER.name: (_WORKER.read_bytes(), script),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("?")[0].lstrip("/")
            file = dist / Path(name).name
            if name in pages:
                self._send(*pages[name])
            elif file.is_file():
                self._send(file.read_bytes(), kinds.get(file.suffix, "text/plain"))
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            found.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._send(b"", "text/plain")
            done.set()

        def _send(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            # An isolated page has a clock of 5 microseconds instead of 100.
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    return Handler


# ---- lists ----------------------------------------------------------------------------------------------------------


def for_parity(modules: Path) -> list[Runtime]:
    """Runtimes that the graphs must agree in. modules: a folder `node_modules`."""
    return [
        VaeRuntime(),
        VaeRuntime("cuda"),
        VaeRuntime("cuda", cuda_graph=True),
        Onnxruntime("onnxruntime CPU"),
        Onnxruntime("onnxruntime CUDA", CUDA, TF32),
        Onnxruntime("onnxruntime TensorRT", TENSORRT, TF32),
        OpenVino(),
        OpenVino(float32=False),
        OpenCv("new"),
        OpenCv("classic"),
        Tract(),
        TorchEager(),
        OnnxReference(),
        Node(modules),
        Web(modules, "wasm"),
        Web(modules, "webgpu"),
    ]


def for_device(device: str) -> list[LocalRuntime]:
    """ONNX Runtime in all the ways in which it uses a device, "cpu" or "cuda"."""
    if device == "cpu":
        return [VaeRuntime(), Onnxruntime("onnxruntime CPU")]
    bare = [Onnxruntime("onnxruntime CUDA", CUDA, TF32), Onnxruntime("onnxruntime TensorRT", TENSORRT, TF32)]
    return [VaeRuntime(device), VaeRuntime(device, cuda_graph=True), *bare]


def for_speed() -> list[LocalRuntime]:
    """Runtimes that `vae_runtime` is raced against."""
    return [Onnxruntime(), TorchEager(), TorchCompiled(), OpenVino(), OpenCv()]
