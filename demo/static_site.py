"""The page without a server: plain files, the engine of one pinned version, and the models."""

from __future__ import annotations

import gzip
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
from PIL import Image

from demo.service import Service, enlarged
from vae_runtime import VAE, InputError, grid, save_png
from vae_runtime.config import DECODER_FILE, ENCODER_FILE, GOLDEN_FILE, graph_files
from vae_runtime.golden import Golden
from vae_runtime.images import Pixels
from vae_runtime.prior.flow import ARRAYS, Flow
from vae_runtime.prior.mixture import Codes

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

POSTER = 420
"""Pixels of the picture that is there before the model."""
ICONS = (192, 512)


def assemble_static(out: Path, folders: Sequence[Path], engine: Path | None = None) -> None:
    """Fill the empty folder `out` with the page, onnxruntime-web, and each model with its golden vectors.

    Graphs are those of the variant fp16 where a model has it: half the bytes, and the same pixels within 1 of 255.
    What is large is compressed here, which not every server does; the page undoes it.

    engine: a folder with the files of onnxruntime-web; without it they come from npm, checked by digest. Raises
    ModelFileError for a model without golden vectors, InputError if the engine cannot be had.
    """
    for folder in folders:
        Golden.load(folder)
    shutil.copytree(Path(__file__).with_name("web"), out, dirs_exist_ok=True)
    _vendor(out / "vendor", engine)
    shared = (out / "vendor" / "ort-wasm-simd-threaded.wasm.gz").stat().st_size
    index: list[dict[str, str | int]] = []
    for folder in folders:
        with VAE.load(folder, device="cpu") as vae:
            target = out / "models" / vae.config.name
            target.mkdir(parents=True)
            service = Service(vae)
            codes = service.starter_codes
            _write(target / "model.json", describe(vae, codes))
            _write(target / "prior.json.gz", describe_prior(service))
            face = enlarged(blended(vae, codes), POSTER)[0]
            Image.fromarray(face).save(target / "poster.webp", quality=80)
            if not index:
                Image.fromarray(face).save(out / "poster.webp", quality=80)
                for side in ICONS:
                    save_png(enlarged(service.example_faces[:1], side)[0], out / f"icon-{side}.png")
            graphs = graph_files("fp16" if set(graph_files("fp16")) <= set(vae.config.files) else None)
        for source, name in zip(graphs, (ENCODER_FILE, DECODER_FILE), strict=True):
            _compress(target / f"{name}.gz", (folder / source).read_bytes())
        shutil.copy(folder / GOLDEN_FILE, target)
        size = shared + sum((target / name).stat().st_size for name in ("model.json", f"{DECODER_FILE}.gz"))
        index.append({"name": target.name, "poster": f"models/{target.name}/poster.webp", "bytes": size})
    _write(out / "models" / "index.json", index)
    worker = out / "sw.js"
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()))
    text = worker.read_text(encoding="utf-8").replace("development", version.hexdigest()[:16])
    worker.write_text(text, encoding="utf-8")


def blended(vae: VAE, codes: Codes) -> Pixels:
    """What the page shows first, (1, S, S, 3): the middle of the square between four codes."""
    return vae.decode(grid(codes, 3, 3)[1, 1])


def describe(vae: VAE, start: Codes) -> dict[str, Any]:
    """What the page needs for its first face besides the decoder: sizes, and the codes in its corners."""
    return {
        "name": vae.config.name,
        "model_id": vae.config.model_id,
        "image_size": vae.image_size,
        "latent_dim": vae.latent_dim,
        "start": _packed(start),
    }


def describe_prior(service: Service) -> dict[str, Any]:
    """What it needs next: the prior, and the directions of its sliders."""
    prior = service.vae.prior
    return {
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
    data = json.dumps(value).encode()
    if path.suffix == ".gz":
        _compress(path, data)
    else:
        path.write_bytes(data)


def _compress(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, 9, mtime=0))


def _vendor(target: Path, engine: Path | None) -> None:
    target.mkdir()
    if engine is not None:
        for name in ORT_FILES:
            _place(target / name, (engine / name).read_bytes())
        return
    with tempfile.TemporaryDirectory() as place:
        archive = _from_npm(Path(place))
        with tarfile.open(archive) as package:
            for name in ORT_FILES:
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None  # a file of the pinned version, which the digest has just proved
                _place(target / name, member.read())


def _place(path: Path, data: bytes) -> None:
    """Write a file of the engine, the large ones compressed."""
    if path.suffix == ".wasm":
        _compress(path.with_name(path.name + ".gz"), data)
    else:
        path.write_bytes(data)


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
