"""python -m demo.space --out DIR: a folder that is the Space, with the app or (--static) the page without a server."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import demo
import vae_runtime
from demo.__main__ import shipped
from demo.service import Studio
from vae_runtime import VAE, InputError
from vae_runtime.cli.arguments import Parser, run
from vae_runtime.config import DECODER_FILE, ENCODER_FILE, GOLDEN_FILE
from vae_runtime.errors import HubError
from vae_runtime.golden import Golden
from vae_runtime.hub import HUB_PREFIX, parse_address, resolve
from vae_runtime.install import install_command
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

PINNED = ("gradio", "numpy", "pillow", "onnxruntime", "opencv-python-headless")
APP = """import os
import sys
from pathlib import Path

from demo.__main__ import main
from demo.rate_limit import PRIVATE_PROXIES

os.environ.setdefault("FORWARDED_ALLOW_IPS", PRIVATE_PROXIES)  # who a visitor is, the Space's proxy says

place = Path(__file__).resolve().parent / "exported"
models = [str(place / name) for name in {names}]
main([*models, "--host", "0.0.0.0", "--device", "cpu", *sys.argv[1:]])
"""
README = """---
title: anime-vae
emoji: 🌸
colorFrom: pink
colorTo: red
sdk: {sdk}
{keys}pinned: false
license: mit
short_description: Draw, blend, bend and breed faces with a small VAE
tags: [vae, onnx, onnxruntime, faces]
{models}thumbnail: thumbnail.png
---

# anime-vae

{text}
"""
APP_TEXT = """\
New faces from a convolutional variational autoencoder, played by ONNX Runtime on the CPU. Everything that it runs is in
this folder: `app.py`, the packages `demo` and `vae_runtime`, and the graphs in `exported`. It holds no token and
fetches nothing."""
STATIC_TEXT = """\
New faces from a convolutional variational autoencoder, drawn in your browser by ONNX Runtime Web: on the GPU by WebGPU
where there is one, else by WebAssembly. Pictures you give never leave your device."""


def main(arguments: Sequence[str]) -> int:
    """Assemble the folder and, if asked, push it; the exit status."""
    parser = Parser(prog="python -m demo.space", description="Assemble a Space")
    parser.add_argument("models", nargs="*", help="folders or hf:owner/name; all shipped models if none is given")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make; it must be empty or new")
    parser.add_argument("--static", action="store_true", help="the page without a server")
    parser.add_argument("--push", metavar="OWNER/NAME", help="put it on the Hugging Face Hub as this Space")
    parser.add_argument("--link", metavar="OWNER/NAME", help="the model's repository on the Hub, named by the card")
    parser.add_argument("--engine", type=Path, help="a folder with onnxruntime-web's files, instead of npm")
    options = parser.parse_args(arguments)
    for address in filter(None, (options.push, options.link)):
        parse_address(HUB_PREFIX + address)
    folders = [resolve(model) for model in options.models or shipped()]
    if options.static:
        assemble_static(options.out, folders, options.link, options.engine)
    else:
        assemble(options.out, folders, options.link)
    print(f"{options.out}: {sum(path.stat().st_size for path in options.out.rglob('*')) / 2**20:.1f} MiB")
    if options.push:
        print(push(options.out, options.push, "static" if options.static else "gradio"))
    return 0


def assemble(out: Path, folders: Sequence[Path], link: str | None = None) -> None:
    """The Gradio Space: app.py, demo, vae_runtime and the models at the root, and requirements that are pinned.

    Raises InputError if `out` holds anything, ModelFileError for a model that is none.
    """
    _begin(out, folders)
    skip = shutil.ignore_patterns("__pycache__", "exported", "web", "space.py")
    for package in (demo, vae_runtime):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, out / source.name, ignore=skip)
    for folder, name in _named(folders):
        shutil.copytree(folder, out / "exported" / name, ignore=skip)
    app = APP.replace("{names}", repr([name for _, name in _named(folders)]).replace("'", '"'))
    (out / "app.py").write_text(app, encoding="utf-8")
    pins = "".join(f"{package}=={version(package)}\n" for package in PINNED if package != "gradio")
    (out / "requirements.txt").write_text(pins, encoding="utf-8")
    # The Space installs gradio itself, in this version; no packages.txt, as the headless OpenCV links no library.
    keys = (
        f'sdk_version: {version("gradio")}\npython_version: "3.12"\napp_file: app.py\nsuggested_hardware: cpu-basic\n'
    )
    _card(out, "gradio", keys, link, APP_TEXT)


def assemble_static(out: Path, folders: Sequence[Path], link: str | None = None, engine: Path | None = None) -> None:
    """The static Space: the page, onnxruntime-web of one pinned version, and each model with its golden vectors.

    engine: a folder with the files of onnxruntime-web; without it they come from npm, checked by digest.
    """
    for folder in folders:
        Golden.load(folder)  # raises where there are none, or none that fit
    _begin(out, folders)
    shutil.copytree(Path(__file__).with_name("web"), out, dirs_exist_ok=True)
    _vendor(out / "vendor", engine)
    names = []
    for folder, name in _named(folders):
        target = out / "models" / name
        target.mkdir(parents=True)
        for file in (ENCODER_FILE, DECODER_FILE, GOLDEN_FILE):
            shutil.copy(folder / file, target)
        with VAE.load(folder, device="cpu") as vae:
            _write(target / "model.json", describe(vae))
        names.append(name)
    _write(out / "models" / "index.json", names)
    headers = (
        "custom_headers:\n  cross-origin-embedder-policy: require-corp\n  cross-origin-opener-policy: same-origin\n"
    )
    _card(out, "static", f"app_file: index.html\n{headers}", link, STATIC_TEXT)


def describe(vae: VAE) -> dict[str, Any]:
    """What the page must know of a model besides its graphs: sizes, the prior, and the steps of its sliders."""
    studio, prior = Studio(vae), vae.prior
    sliders = [*studio.named, *studio.strong]
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
        "sliders": [{"label": slider.label, "step": slider.step.tolist()} for slider in sliders],
    }


def push(folder: Path, address: str, sdk: str) -> str:
    """Put the folder on the Hub as a Space; the address of the commit. HubError says what to do without a token."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(f"--push needs huggingface_hub; {install_command('hub')}") from error
    if not huggingface_hub.get_token():
        raise HubError(f"{address}: no token, so nothing was pushed; hf auth login, or set HF_TOKEN")
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(address, repo_type="space", space_sdk=sdk, exist_ok=True)
        done = api.upload_folder(
            repo_id=address, repo_type="space", folder_path=folder, commit_message="Assemble the Space"
        )
    except Exception as error:  # the Hub's errors, those of its HTTP client and of the disk share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise HubError(f"{address}: cannot be written ({reason})") from error
    return str(done.commit_url)


def _begin(out: Path, folders: Sequence[Path]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: not an empty folder; give a new one, nothing is overwritten")
    out.mkdir(parents=True, exist_ok=True)
    with VAE.load(folders[0], device="cpu") as vae:
        from vae_runtime import image_grid, save_png

        save_png(image_grid(vae.sample(24, rng=7), 6, scale=max(1, 96 // vae.image_size)), out / "thumbnail.png")


def _named(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each model's folder and its name from its own config, in the order given."""
    return [(folder, json.loads((folder / "config.json").read_text(encoding="utf-8"))["name"]) for folder in folders]


def _card(out: Path, sdk: str, keys: str, link: str | None, text: str) -> None:
    models = f"models: [{link}]\n" if link else ""
    (out / "README.md").write_text(README.format(sdk=sdk, keys=keys, models=models, text=text), encoding="utf-8")


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


if __name__ == "__main__":
    run(main)
