"""Which device a model runs on: what is requested, and what the driver and the wheels of ONNX Runtime offer.

ONNX Runtime falls back to the CPU without an error where CUDA cannot start, and lists CUDA on machines without a GPU.
So the driver is asked first, and `vae_runtime.ort.graph` reads the device from the session once it exists.
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

from vae_runtime.checks import check_count
from vae_runtime.errors import DeviceError, DeviceWarning, InputError, InputTypeError, RuntimeMissingError
from vae_runtime.files import cache_folder
from vae_runtime.install import install_command

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
WHEELS = ("onnxruntime", "onnxruntime-gpu")
"""The two distributions of ONNX Runtime. They share their files, so only one may be installed."""
DEVICE_VARIABLE = "VAE_DEVICE"
"""Environment variable that decides what device="auto" means: "cpu", "cuda", "cuda:1"."""

_DEVICE = re.compile(r"cuda(?::([0-9]{1,3}))?")
_UNINSTALL = f"pip uninstall -y {' '.join(WHEELS)}"

Provider: TypeAlias = str | tuple[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """How to run a model; the fields are the arguments of `VAE.load` of the same names."""

    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:n"."""
    providers: Sequence[Provider] | None = None
    """ONNX Runtime's own provider list, instead of `device`."""
    threads: int | None = None
    """CPU cores to use; None for `free_cores()`."""
    tensorrt: bool = False
    """TensorRT in front of CUDA, its engines cached on disk."""
    cuda_graph: bool = False
    """Replay captured CUDA graphs, one for each batch size, instead of launching each kernel."""

    def __post_init__(self) -> None:
        parse_device(self.device)
        if self.providers is not None:
            _check_providers(self.providers)
            if self.device != "auto" or self.tensorrt or self.cuda_graph:
                raise InputError("providers: cannot be combined with device, tensorrt or cuda_graph; give one of them")
        if self.threads is not None:
            object.__setattr__(self, "threads", check_count(self.threads, "threads", 1, 1024))
        if (self.tensorrt or self.cuda_graph) and self.request[0] == "cpu":
            raise InputError("tensorrt and cuda_graph: got the device 'cpu', expected 'cuda' or 'auto'")

    @property
    def request(self) -> tuple[str, int]:
        """The requested device, with $VAE_DEVICE in place of "auto": ("auto" | "cpu" | "cuda", index)."""
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
    """The onnxruntime module, its telemetry off unless $ORT_DISABLE_TELEMETRY is set; RuntimeMissingError with the
    repair if it is missing or empty."""
    # It would write a device's identifier to the home folder, call its maker, and hang at the exit of a forked child.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(
            f"onnxruntime is not installed; {install_command('cpu')} for a CPU, or "
            f"{install_command('gpu')} for an NVIDIA GPU, not both"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise RuntimeMissingError(
            "onnxruntime is an empty package, what is left after one of its two wheels was uninstalled; "
            f"{_UNINSTALL}, then {install_command('cpu')}"
        )
    return onnxruntime


def parse_device(device: str, name: str = "device") -> tuple[str, int]:
    """("auto" | "cpu" | "cuda", index) from "auto", "cpu", "cuda" or "cuda:1"; InputError names `name`."""
    if isinstance(device, str):
        if device in ("auto", "cpu"):
            return device, 0
        if match := _DEVICE.fullmatch(device):
            return "cuda", int(match[1] or 0)
    raise InputError(f"{name}: got {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:1'")


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of its control group; at least 1.

    ONNX Runtime counts the cores of the host and starts too many threads in a container (its issue 10916).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(round(quota) for quota in _cpu_quotas())]))


def _cpu_quotas(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """The quotas, in cores, of this process's control group and those above it, in version 2 and version 1."""
    quotas = []
    groups = [""]
    with contextlib.suppress(OSError):
        groups += [line.split(":", 2)[2] for line in own.read_text().splitlines() if line.count(":") >= 2]
    folders = {folder for group in groups for folder in (Path(group.strip("/")), *Path(group.strip("/")).parents)}
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # "max" is a ValueError: no quota
            quota, period = (root / folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((root / "cpu" / folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return quotas


def free_cores() -> int:
    """Of `usable_cores`, those that the load of the last minute leaves free; at least half of them.

    Threads on a busy core wait for each other. The load may end soon, so that half of the cores are used anyway.
    """
    cores = usable_cores()
    try:
        idle = (os.cpu_count() or cores) - os.getloadavg()[0]
    except (OSError, AttributeError):  # no such figure on this system
        return cores
    return max(min(cores, round(idle)), -(-cores // 2))


def installed_wheels() -> dict[str, str]:
    """Name -> version of those of `WHEELS` that are installed."""
    found = {}
    for wheel in WHEELS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[wheel] = metadata.version(wheel)
    return found


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver."""

    version: str
    """The newest CUDA version that it supports, as "13.0"; "" without a driver."""
    gpus: tuple[str, ...]
    """Names of the GPUs."""


@functools.cache
def cuda_driver() -> Driver:
    """Query the driver itself, without a CUDA toolkit."""
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
    """Why a CUDA session cannot start here, and the remedy; None where nothing is known to prevent it."""
    ort = import_onnxruntime()
    if not cuda_driver().version:
        return "no NVIDIA driver is found; on a machine with an NVIDIA GPU, install its driver"
    if CUDA not in ort.get_available_providers():
        if len(installed_wheels()) > 1:
            return (
                "the CPU wheel of onnxruntime has overwritten the CUDA one; "
                f"{_UNINSTALL}, then {install_command('gpu')}"
            )
        return (
            "the installed onnxruntime has no CUDA provider; on a machine with an NVIDIA GPU: "
            f"pip uninstall -y onnxruntime, then {install_command('gpu')}"
        )
    gpus = len(cuda_driver().gpus)
    if gpus <= index:
        return f"the NVIDIA driver shows {gpus} GPUs; install or update the driver, or use device='cpu'"
    return None


@functools.cache
def preload_cuda() -> str:
    """Load the CUDA and cuDNN libraries that pip installed; what could not be loaded, in ONNX Runtime's words.

    The wheel has no RPATH to these libraries, and preload_dlls (of 1.21 and later) reports failures on stdout.
    """
    printed = io.StringIO()
    ort = import_onnxruntime()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(printed):
            ort.preload_dlls()
    return " ".join(printed.getvalue().split())


@functools.cache
def warn_once(message: str) -> None:
    """Issue a DeviceWarning, once for each message."""
    warnings.warn(message, DeviceWarning, stacklevel=2)


def choose_providers(options: DeviceOptions, profile: str = "") -> list[Provider]:
    """ONNX Runtime's provider list. A device that is asked for by name is required.

    "auto" without CUDA warns once where an NVIDIA driver is found, and says nothing on a plain CPU machine.

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
        raise DeviceError(f"device='cuda:{index}' cannot be used: {reason}")
    if options.tensorrt or options.cuda_graph:
        raise DeviceError(f"tensorrt and cuda_graph need CUDA: {reason}")
    if cuda_driver().version:
        warn_once(f"running on the CPU: {reason}; device='cpu' turns this warning off")
    return [CPU]


def _cuda(options: DeviceOptions, index: int) -> Provider:
    # HEURISTIC: the default search tunes every new batch size anew, which takes seconds at the first call of each.
    settings = {"device_id": str(index), "cudnn_conv_algo_search": "HEURISTIC"}
    return CUDA, settings | ({"enable_cuda_graph": "1"} if options.cuda_graph else {})


def _tensorrt(options: DeviceOptions, index: int, profile: str) -> list[Provider]:
    if not options.tensorrt:
        return []
    if TENSORRT not in import_onnxruntime().get_available_providers():
        raise DeviceError("tensorrt=True cannot be used: the installed onnxruntime has no TensorRT provider")
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
