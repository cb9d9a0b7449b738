"""One ONNX graph on one device: the choice of the device, and a session that checks what it is given.

ONNX Runtime falls back to the CPU without an error when CUDA cannot be had, and lists CUDA on machines without a GPU.
So the driver is asked first, and what really runs is read from the session after it exists.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import DeviceError, DeviceWarning, InputError, ModelFileError, RuntimeMissingError

if TYPE_CHECKING:
    import onnxruntime

MAX_BATCH = 64
"""Rows of one run. Larger inputs are cut: the memory of one batch of 256 is several hundred MB, and not faster."""

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_CUDA_DEVICE = re.compile(r"cuda(?::([0-9]{1,3}))?")
_INSTALL = 'pip install "anime-vae[cpu]" for a CPU, or "anime-vae[gpu]" for an NVIDIA GPU, never both'

Provider: TypeAlias = str | tuple[str, dict[str, str]]


def import_onnxruntime() -> Any:
    """The onnxruntime module; RuntimeMissingError names the command when there is none, or only an empty shell."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(f"onnxruntime is not installed; {_INSTALL}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise RuntimeMissingError(
            "onnxruntime is an empty package, as uninstalling one of its two wheels leaves it; "
            f"pip uninstall onnxruntime onnxruntime-gpu, then {_INSTALL}"
        )
    return onnxruntime


def parse_device(device: str) -> tuple[str, int]:
    """("auto" | "cpu" | "cuda", index) from "auto", "cpu", "cuda" or "cuda:1"."""
    if device in ("auto", "cpu"):
        return device, 0
    if isinstance(device, str) and (match := _CUDA_DEVICE.fullmatch(device)):
        return "cuda", int(match[1] or 0)
    raise InputError(f"device: got {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:1'")


@functools.cache
def cuda_devices() -> int:
    """NVIDIA GPUs that the driver sees; 0 where there is no driver. Quiet, and needs no CUDA toolkit."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def why_not_cuda(index: int = 0) -> str | None:
    """The reason, with its remedy, why a CUDA session cannot start here; None when nothing speaks against it."""
    ort = import_onnxruntime()
    if _CUDA not in ort.get_available_providers():
        return (
            "the installed onnxruntime has no CUDA provider; on a machine with an NVIDIA GPU: "
            'pip uninstall onnxruntime, then pip install "anime-vae[gpu]"'
        )
    if cuda_devices() <= index:
        return f"the NVIDIA driver shows {cuda_devices()} GPUs; install or update the driver, or use device='cpu'"
    return None


@functools.cache
def _preload_cuda(ort: Any) -> None:
    # The wheel has no RPATH to the CUDA libraries of pip, and preload_dlls reports to stdout what it does not find.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, DeviceWarning, stacklevel=2)


def choose_providers(device: str) -> list[Provider]:
    """The provider list for `device`: strict where CUDA is asked for by name, with one warning where auto has none.

    Raises DeviceError, InputError or RuntimeMissingError.
    """
    kind, index = parse_device(device)
    if kind == "cpu":
        return [_CPU]
    reason = why_not_cuda(index)
    if reason is None:
        _preload_cuda(import_onnxruntime())
        # HEURISTIC: the default search tunes every new batch size anew, which takes seconds at the first call of each.
        return [(_CUDA, {"device_id": str(index), "cudnn_conv_algo_search": "HEURISTIC"}), _CPU]
    if kind == "cuda":
        raise DeviceError(f"device={device!r} cannot be had: {reason}")
    _warn_once(f"running on the CPU: {reason}; device='cpu' asks for it without this warning")
    return [_CPU]


class Graph:
    """An ONNX graph on a device. `run` takes and returns float32 arrays and may be called from many threads."""

    def __init__(self, model: bytes, name: str, device: str = "auto") -> None:
        """model: the bytes of a self-contained .onnx file. name: for messages. device: as in `VAE.load`."""
        ort = import_onnxruntime()
        providers = choose_providers(device)
        self.name = name
        self.session = _open(ort, model, name, providers)
        active = self.session.get_providers()[0]
        if active == _CPU and providers[0] != _CPU:
            reason = "ONNX Runtime could not start its CUDA provider (CUDA or cuDNN libraries missing or too old)"
            if parse_device(device)[0] == "cuda":
                raise DeviceError(f'device={device!r} cannot be had: {reason}; pip install "anime-vae[gpu]"')
            _warn_once(f'running on the CPU: {reason}; pip install "anime-vae[gpu]"')
        index = parse_device(device)[1]
        self.device = "cpu" if active == _CPU else f"cuda:{index}"
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    def check_contract(self, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> None:
        """Raise ModelFileError unless the graph has exactly these float32 ports, of (batch, *shape)."""
        for kind, wanted, ports in (
            ("inputs", inputs, self.session.get_inputs()),
            ("outputs", outputs, self.session.get_outputs()),
        ):
            got = {port.name: (port.type, tuple(port.shape[1:]), isinstance(port.shape[0], int)) for port in ports}
            if got != {name: ("tensor(float)", shape, False) for name, shape in wanted.items()}:
                shown = {port.name: [port.type, *port.shape] for port in ports}
                expected = {name: ["tensor(float)", "batch", *shape] for name, shape in wanted.items()}
                raise ModelFileError(f"{self.name}: {kind} are {shown}, expected {expected}; export the run again")

    def run(self, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """All outputs for `values` (n, ...), n >= 0, in runs of at most `MAX_BATCH` rows."""
        feed = self.session.get_inputs()[0].name
        parts = [
            self.session.run(None, {feed: values[start : start + MAX_BATCH]})
            for start in range(0, max(len(values), 1), MAX_BATCH)
        ]
        return [np.concatenate(column) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True)]


def _open(ort: Any, model: bytes, name: str, providers: Sequence[Provider]) -> onnxruntime.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The arena keeps the memory of the largest batch for ever, and is no faster on a CPU.
    options.enable_cpu_mem_arena = False
    try:
        return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ModelFileError(f"{name}: ONNX Runtime cannot load it ({str(error)[:200]})") from error


def read_graph(folder: Path, file: str) -> bytes:
    """The bytes of a graph file, with the common accidents named: missing, empty, a git-lfs pointer, a web page."""
    path = folder / file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); export or download the model again"
        ) from error
    if data.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{path}: a git-lfs pointer and not the graph itself; run git lfs pull")
    if not data or data.lstrip()[:1] == b"<":
        raise ModelFileError(
            f"{path}: {'empty' if not data else 'a web page'}, expected an ONNX graph; download it again"
        )
    return data
