"""The device of a run: choice, precision, threads, free memory."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from vae_runtime.ort.devices import usable_cores
from vae_train.engine.distributed import SINGLE_PROCESS, DistributedContext
from vae_train.errors import UsageError

_CGROUP = Path("/sys/fs/cgroup")
_LOAD_INTERVAL = 0.5  # seconds over which the load of the cores is measured


def choose_device(name: str, context: DistributedContext = SINGLE_PROCESS) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:n"; UsageError for a named device that is not available.

    Of several processes, each one gets the GPU of its local rank.
    """
    if name == "auto" and not torch.cuda.is_available():
        if context.is_main:
            print("training on the CPU: torch finds no CUDA device", file=sys.stderr)
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    if device.type == "cuda":
        device = torch.device("cuda", context.local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"--device {device}: torch finds {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device, context: DistributedContext = SINGLE_PROCESS) -> str:
    """ "NVIDIA H200", or "CPU (AMD EPYC), 2 threads"; preceded by the number of processes if there are several."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        model = _cpu_capabilities().get("cpu_name", platform.machine())
        threads = torch.get_num_threads()
        where = f"CPU ({model}), {threads} thread{'s' if threads > 1 else ''}"
    return where if context.world_size == 1 else f"{context.world_size} x {where}"


def choose_precision(name: str, device: torch.device) -> str:
    """ "float32" or "bfloat16"; for "auto" the latter if the device supports it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = _cpu_capabilities()
        native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return "bfloat16" if native else "float32"


def limit_threads() -> int:
    """Let torch use as many threads as cores are idle, and return that number; $OMP_NUM_THREADS overrules it.

    A step consists of many short parallel sections, each as slow as its slowest thread: two threads on one idle core
    train several times slower than one.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), idle_cores()))
    return torch.get_num_threads()


def idle_cores() -> int:
    """Cores that this process may use and that other processes leave idle, measured over half a second; at least 1."""
    busy = psutil.cpu_percent(_LOAD_INTERVAL, percpu=True)
    if hasattr(os, "sched_getaffinity"):
        busy = [busy[core] for core in os.sched_getaffinity(0) if core < len(busy)] or busy
    idle = sum(1 - percent / 100 for percent in busy)
    return max(1, min(usable_cores(), round(idle)))


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a GPU, or for this process on the machine, limited by its control group."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = float(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, float(limit) - float(used))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return free


def _cpu_capabilities() -> dict[str, Any]:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities
