"""Which device a model runs on: what was asked for, what the driver and the wheels offer, and why not more.

ONNX Runtime falls back to the CPU without an error when CUDA cannot be had, and lists CUDA on machines without a GPU.
So the driver is asked first, and `vae_runtime.ort.graph` reads what really runs from the session after it exists.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from vae_runtime.errors import DeviceError, DeviceWarning, InputError, InputTypeError, RuntimeMissingError
from vae_runtime.files import cache_folder

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
WHEELS = ("onnxruntime", "onnxruntime-gpu")
"""The two distributions of ONNX Runtime. They share their files, so only one may be installed."""
DEVICE_VARIABLE = "VAE_DEVICE"
"""Environment variable that decides what device="auto" means: "cpu", "cuda", "cuda:1"."""

_DEVICE = re.compile(r"cuda(?::([0-9]{1,3}))?")
_INSTALL = 'pip install "anime-vae[cpu]" for a CPU, or "anime-vae[gpu]" for an NVIDIA GPU, never both'
_REINSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu"

Provider: TypeAlias = str | tuple[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """How a model is to be run; the fields are the arguments of `VAE.load` of the same names."""

    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:n"."""
    providers: Sequence[Provider] | None = None
    """ONNX Runtime's own provider list, instead of `device`."""
    threads: int | None = None
    """CPU cores to use; None means all that this process may use."""
    tensorrt: bool = False
    """TensorRT before CUDA, its engines cached on disk."""
    cuda_graph: bool = False
    """Replay captured CUDA graphs, one a batch size, instead of launching each kernel."""

    def __post_init__(self) -> None:
        parse_device(self.device)
        if self.providers is not None:
            _check_providers(self.providers)
            if self.device != "auto" or self.tensorrt or self.cuda_graph:
                raise InputError("providers: cannot be combined with device, tensorrt or cuda_graph; give one of them")
        if self.threads is not None and (isinstance(self.threads, bool) or not isinstance(self.threads, int)):
            raise InputTypeError(f"threads: got {self.threads!r}, expected an integer from 1 to 1024, or None")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise InputError(f"threads: got {self.threads}, expected 1 to 1024, or None for all cores")
        if (self.tensorrt or self.cuda_graph) and self.request[0] == "cpu":
            raise InputError("tensorrt and cuda_graph: got the device 'cpu', expected 'cuda' or 'auto'")

    @property
    def request(self) -> tuple[str, int]:
        """What is asked for, $VAE_DEVICE considered: ("auto" | "cpu" | "cuda", index)."""
        variable = os.environ.get(DEVICE_VARIABLE)
        if self.device != "auto" or not variable or self.providers is not None:
            return parse_device(self.device)
        return parse_device(variable, DEVICE_VARIABLE)


def _check_providers(providers: Sequence[Provider]) -> None:
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise InputTypeError(f"providers: got {providers!r}, expected a list such as ['CPUExecutionProvider']")
    for provider in providers:
        name = provider[0] if isinstance(provider, tuple) and len(provider) == 2 else provider
        if not isinstance(name, str):
            raise InputTypeError(f"providers: got {provider!r}, expected a name or (name, options)")
        available = import_onnxruntime().get_available_providers()
        if name not in available:
            raise DeviceError(f"providers: {name} is not in the installed ONNX Runtime, which has {available}")


def import_onnxruntime() -> Any:
    """The onnxruntime module; RuntimeMissingError names the command when there is none, or only an empty shell."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(f"onnxruntime is not installed; {_INSTALL}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise RuntimeMissingError(
            "onnxruntime is an empty package, as uninstalling one of its two wheels leaves it; "
            f"{_REINSTALL}, then {_INSTALL}"
        )
    return onnxruntime


def parse_device(device: str, name: str = "device") -> tuple[str, int]:
    """("auto" | "cpu" | "cuda", index) from "auto", "cpu", "cuda" or "cuda:1"; InputError says `name`."""
    if device in ("auto", "cpu"):
        return device, 0
    if isinstance(device, str) and (match := _DEVICE.fullmatch(device)):
        return "cuda", int(match[1] or 0)
    raise InputError(f"{name}: got {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:1'")


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity, and in a container the quota; never less than 1.

    ONNX Runtime counts the cores of the host, and starts far too many threads in a container (its issue 10916).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))  # "max" is a ValueError: no quota
    return max(1, cores)


def installed_wheels() -> dict[str, str]:
    """The version of each of `WHEELS` that is installed, by name."""
    found = {}
    for wheel in WHEELS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[wheel] = metadata.version(wheel)
    return found


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver, as it answers for itself."""

    version: str
    """The newest CUDA that it supports, "13.0"; "" where there is no driver."""
    gpus: tuple[str, ...]
    """Names of the GPUs that it shows."""


@functools.cache
def cuda_driver() -> Driver:
    """Ask the driver, quietly and without a CUDA toolkit."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Driver("", ())
    number = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(number)) != 0:
        return Driver(version, ())
    names = []
    for index in range(number.value):
        name = ctypes.create_string_buffer(256)
        driver.cuDeviceGetName(name, 256, index)
        names.append(name.value.decode("utf-8", "replace"))
    return Driver(version, tuple(names))


def why_not_cuda(index: int = 0) -> str | None:
    """The reason, with its remedy, why a CUDA session cannot start here; None when nothing speaks against it."""
    ort = import_onnxruntime()
    if CUDA not in ort.get_available_providers():
        if len(installed_wheels()) > 1:
            return (
                "the CPU wheel of onnxruntime has overwritten the CUDA one; "
                f'{_REINSTALL}, then pip install "anime-vae[gpu]"'
            )
        return (
            "the installed onnxruntime has no CUDA provider; on a machine with an NVIDIA GPU: "
            'pip uninstall -y onnxruntime, then pip install "anime-vae[gpu]"'
        )
    gpus = len(cuda_driver().gpus)
    if gpus <= index:
        return f"the NVIDIA driver shows {gpus} GPUs; install or update the driver, or use device='cpu'"
    return None


@functools.cache
def preload_cuda() -> str:
    """Load the CUDA and cuDNN libraries that pip installed; what could not be loaded, as ONNX Runtime says it.

    The wheel has no RPATH to these libraries, and preload_dlls reports what it misses on stdout: it is caught here.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        import_onnxruntime().preload_dlls()
    return " ".join(said.getvalue().split())


@functools.cache
def warn_once(message: str) -> None:
    """One DeviceWarning a process and message."""
    warnings.warn(message, DeviceWarning, stacklevel=2)


def choose_providers(options: DeviceOptions, profile: str = "") -> list[Provider]:
    """ONNX Runtime's provider list: strict where CUDA is asked for by name, with one warning where auto has none.

    profile: each input's name and its shape without the batch, "z:128,image:3x32x32", for TensorRT's shape range.
    Raises DeviceError, InputError or RuntimeMissingError.
    """
    if options.providers is not None:
        return list(options.providers)
    kind, index = options.request
    if kind == "cpu":
        return [CPU]
    reason = why_not_cuda(index)
    if reason is None:
        preload_cuda()
        return [*_tensorrt(options, index, profile), _cuda(options, index), CPU]
    if kind == "cuda":
        raise DeviceError(f"device='cuda:{index}' cannot be had: {reason}")
    if options.tensorrt or options.cuda_graph:
        raise DeviceError(f"tensorrt and cuda_graph need CUDA: {reason}")
    warn_once(f"running on the CPU: {reason}; device='cpu' asks for it without this warning")
    return [CPU]


def _cuda(options: DeviceOptions, index: int) -> Provider:
    # HEURISTIC: the default search tunes every new batch size anew, which takes seconds at the first call of each.
    settings = {"device_id": str(index), "cudnn_conv_algo_search": "HEURISTIC"}
    return CUDA, settings | ({"enable_cuda_graph": "1"} if options.cuda_graph else {})


def _tensorrt(options: DeviceOptions, index: int, profile: str) -> list[Provider]:
    if not options.tensorrt:
        return []
    if TENSORRT not in import_onnxruntime().get_available_providers():
        raise DeviceError("tensorrt=True cannot be had: the installed onnxruntime has no TensorRT provider")
    shapes = {
        f"trt_profile_{size}_shapes": profile.replace(":", f":{batch}x")
        for size, batch in (("min", 1), ("opt", 8), ("max", 64))
    }
    cache = cache_folder() / "tensorrt"
    cache.mkdir(parents=True, exist_ok=True)
    settings = {
        "device_id": str(index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }
    return [(TENSORRT, settings | shapes)]
