"""The page without a server: plain files, the engine of one pinned version, and the models."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demo.service import Service
from vae_runtime import VAE, InputError
from vae_runtime.config import DECODER_FILE, ENCODER_FILE, GOLDEN_FILE
from vae_runtime.golden import Golden
from vae_runtime.prior.flow import ARRAYS, Flow

# The page's engine, from npm: the version and the digest that npm's registry gives for it.
ORT_WEB = "1.30.0"
ORT_INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
ORT_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)


def assemble_static(out: Path, folders: Sequence[Path], engine: Path | None = None) -> None:
    """Fill the empty folder `out` with the page, onnxruntime-web, and each model with its golden vectors.

    engine: a folder with the files of onnxruntime-web; without it they come from npm, checked by digest. Raises
    ModelFileError for a model without golden vectors, InputError if the engine cannot be had.
    """
    for folder in folders:
        Golden.load(folder)
    shutil.copytree(Path(__file__).with_name("web"), out, dirs_exist_ok=True)
    _vendor(out / "vendor", engine)
    names = []
    for folder in folders:
        with VAE.load(folder, device="cpu") as vae:
            target = out / "models" / vae.config.name
            target.mkdir(parents=True)
            _write(target / "model.json", describe(vae))
            names.append(vae.config.name)
        for file in (ENCODER_FILE, DECODER_FILE, GOLDEN_FILE):
            shutil.copy(folder / file, target)
    _write(out / "models" / "index.json", names)


def describe(vae: VAE) -> dict[str, Any]:
    """What the page needs of a model besides its graphs: sizes, the prior, and the directions of its sliders."""
    service, prior = Service(vae), vae.prior
    return {
        "name": vae.config.name,
        "model_id": vae.config.model_id,
        "image_size": vae.image_size,
        "latent_dim": vae.latent_dim,
        "prior": {
            "weights": prior.weights.tolist(),
            "means": _packed(prior.means),
            "scales": None if prior.scales is None else _packed(prior.scales),
            "spreads": None if prior.spreads is None else _packed(prior.spreads),
            "flow": None if prior.flow is None else _described(prior.flow),
        },
        "groups": [
            {
                "title": group.title,
                "folded": group.folded,
                "sliders": [
                    {"name": name, "label": label, "step": _packed(service.directions[name])}
                    for name, label in group.names
                ],
            }
            for group in service.board().groups
        ],
    }


def _described(flow: Flow) -> dict[str, Any]:
    numbers = {name: _packed(getattr(flow, name)) for name in ARRAYS if name != "orders"}
    return {"orders": flow.orders.tolist(), **numbers}


def _packed(array: np.ndarray[Any, Any]) -> str:
    return b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _vendor(target: Path, engine: Path | None) -> None:
    target.mkdir()
    if engine is not None:
        for name in ORT_FILES:
            shutil.copy(engine / name, target)
        return
    with tempfile.TemporaryDirectory() as place:
        archive = _from_npm(Path(place))
        with tarfile.open(archive) as package:
            for name in ORT_FILES:
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None  # a file of the pinned version, which the digest has just proved
                (target / name).write_bytes(member.read())


def _from_npm(place: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("the page needs onnxruntime-web; install npm, or give its files with --engine")
    done = subprocess.run(
        [npm, "pack", f"onnxruntime-web@{ORT_WEB}", "--silent"], cwd=place, capture_output=True, text=True
    )
    archives = list(place.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise InputError(f"onnxruntime-web {ORT_WEB} cannot be fetched from npm: {done.stderr.strip()[-160:]}")
    digest = "sha512-" + b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if digest != ORT_INTEGRITY:
        raise InputError(f"onnxruntime-web {ORT_WEB}: npm sent another file than the pinned one; nothing was made")
    return archives[0]
