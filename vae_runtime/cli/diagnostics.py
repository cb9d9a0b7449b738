"""Diagnostics of the installation, for `python -m vae_runtime info`: versions, devices, and repair commands.

Each fact is found independently and none needs ONNX Runtime, so it works in a broken installation.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import PIL

from vae_runtime import __version__
from vae_runtime.config import graph_files
from vae_runtime.errors import DeviceError, RuntimeMissingError
from vae_runtime.install import install_command
from vae_runtime.model import VAE
from vae_runtime.ort.devices import (
    CPU,
    CUDA,
    DEVICE_VARIABLE,
    WHEELS,
    DeviceOptions,
    choose_providers,
    cuda_driver,
    import_onnxruntime,
    installed_wheels,
    usable_cores,
    why_not_cuda,
)
from vae_runtime.ort.graph import session_options

_LATER = 20  # runs after the first, whose median is the steady latency


def environment() -> dict[str, str]:
    """Versions, wheels, driver and CUDA libraries, by name."""
    found = {
        "vae_runtime": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {usable_cores()} cores to use",
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    wheels = installed_wheels()
    for wheel in WHEELS:
        found[wheel] = wheels.get(wheel, "not installed")
    driver = cuda_driver()
    found["NVIDIA driver"] = f"for CUDA {driver.version}" if driver.version else "not found"
    found[DEVICE_VARIABLE] = os.environ.get(DEVICE_VARIABLE) or "not set"
    found["GPUs"] = ", ".join(driver.gpus) or "none"
    if "onnxruntime-gpu" in wheels:
        found["CUDA libraries"] = _library("nvidia-cuda-runtime")
        found["cuDNN"] = _library("nvidia-cudnn")
    return found


def _library(prefix: str) -> str:
    """The versions of the installed distributions whose names begin with `prefix`: nvidia-cudnn-cu13 and others."""
    names = (distribution.metadata["Name"] or "" for distribution in metadata.distributions())
    found = sorted({f"{name} {metadata.version(name)}" for name in names if name.startswith(prefix)})
    return ", ".join(found) or "not installed by pip; those of the system are used, if any"


def diagnose() -> tuple[str, str]:
    """(what is wrong, the command that repairs it); two empty texts if nothing is."""
    wheels = installed_wheels()
    wanted = "gpu" if cuda_driver().gpus and platform.system() != "Darwin" else "cpu"
    install = install_command(wanted)
    if len(wheels) > 1:
        return "both wheels of ONNX Runtime are installed and overwrite each other", _afresh(install)
    try:
        ort = import_onnxruntime()
    except RuntimeMissingError as error:
        if "empty package" in str(error):
            return "onnxruntime is an empty package, what is left after one of two wheels was uninstalled", _afresh(
                install
            )
        return "ONNX Runtime is not installed", install
    if wanted == "gpu" and CUDA not in ort.get_available_providers():
        return f"there is a GPU ({cuda_driver().gpus[0]}), and an ONNX Runtime without CUDA", _afresh(install)
    if wanted == "gpu":
        try:
            probe(VAE.load(device="cuda"))
        except DeviceError as error:
            return f"CUDA does not start ({error})", f"{install} --force-reinstall"
    return "", ""


def _afresh(install: str) -> str:
    return f"pip uninstall -y {' '.join(WHEELS)} && {install}"


def why_cpu() -> str:
    """Why CUDA is not used here, or "" where it can be."""
    try:
        return why_not_cuda(DeviceOptions().request[1]) or ""
    except RuntimeMissingError as error:
        return str(error)


def device_line(vae: VAE) -> str:
    """Where a model runs: "cpu, 2 threads (CPUExecutionProvider of ONNX Runtime 1.32.0)"."""
    providers = ", ".join(vae.encoder.session.get_providers())
    threads = f", {vae.encoder.threads} thread{'s' if vae.encoder.threads > 1 else ''}" if vae.device == "cpu" else ""
    return f"{vae.device}{threads} ({providers} of ONNX Runtime {import_onnxruntime().__version__})"


def probe(vae: VAE) -> dict[str, str]:
    """First and steady latency at batch 1 of an opened model, in milliseconds, by name."""
    face = np.zeros((1, vae.image_size, vae.image_size, 3), np.uint8)
    code = np.zeros((1, vae.latent_dim), np.float32)
    found = {}
    for name, call in (("encode", lambda: vae.encode(face)), ("decode", lambda: vae.decode(code))):
        times = []
        for _ in range(1 + _LATER):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        found[name] = f"first {times[0]:.2f} ms, then {np.median(times[1:]):.2f} ms"
    return found


def nodes(vae: VAE, folder: Path) -> dict[str, str]:
    """For each graph, the number of nodes that each provider runs; {} where ONNX Runtime is too old to tell."""
    ort = import_onnxruntime()
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        return {}
    found, files = {}, graph_files(vae.variant)
    for graph, file, opened in zip(("encoder", "decoder"), files, (vae.encoder, vae.decoder), strict=True):
        options = session_options()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = choose_providers(opened.options) if opened.device != "cpu" else [CPU]
        session = ort.InferenceSession(str(folder / file), options, providers=providers)
        counts: Counter[str] = Counter()
        for part in session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
        found[f"nodes of {graph}"] = ", ".join(f"{count} on {name}" for name, count in counts.items())
    return found
