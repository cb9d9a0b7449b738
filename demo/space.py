"""python -m demo.space --out DIR: a folder that is the Space, with the app or (--static) the page without a server."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import demo
import vae_runtime
from demo.__main__ import shipped
from demo.service import Starters
from demo.static_site import assemble_static
from vae_runtime import VAE, InputError, ModelConfig, image_grid, save_png
from vae_runtime.cli.arguments import Parser, run
from vae_runtime.hub import HUB_PREFIX, parse_address, push, resolve

PINNED = ("gradio", "numpy", "pillow", "onnxruntime", "opencv-python-headless")
APP = """import os
import sys
from pathlib import Path

from demo.__main__ import main
from demo.server.rate_limit import PRIVATE_PROXIES

os.environ.setdefault("FORWARDED_ALLOW_IPS", PRIVATE_PROXIES)  # the Space's proxy says who a visitor is
os.environ.setdefault("GRADIO_SERVER_NAME", "0.0.0.0")

place = Path(__file__).resolve().parent / "exported"
models = [str(place / name) for name in {names}]
main([*models, "--device", "cpu", *sys.argv[1:]])
"""
README = """---
title: anime-vae
emoji: 🌸
colorFrom: pink
colorTo: red
sdk: {sdk}
{keys}pinned: false
license: mit
short_description: Draw, blend, edit and breed faces with a small VAE
tags: [vae, onnx, onnxruntime, faces, image-generation]
{links}---

# anime-vae

{text}

The code and the weights are under the MIT license. `avatars` are drawn by python-avatars (MIT). The pictures that the
anime models were trained on belong to their artists; none of them is in this folder.
"""
GIT_ATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in ("onnx", "npz", "png", "webp", "gz")
)
APP_TEXT = """\
New faces from a convolutional variational autoencoder, run by ONNX Runtime on the CPU. This folder holds everything it
needs: `app.py`, the packages `demo` and `vae_runtime`, and the graphs in `exported`. `pip install -r requirements.txt`
and `python app.py` run it anywhere. It needs no token and fetches nothing."""
STATIC_TEXT = """\
New faces from a convolutional variational autoencoder, drawn in your browser by ONNX Runtime Web, by WebGPU or
WebAssembly, whichever is faster there. Pictures you choose never leave your device."""


def main(arguments: Sequence[str]) -> int:
    """Assemble the folder and, if asked, push it; the exit status."""
    parser = Parser(prog="python -m demo.space", description="Assemble a Space")
    parser.add_argument("models", nargs="*", help="folders or hf:owner/name (default: all shipped models)")
    parser.add_argument("--out", type=Path, required=True, help="folder to create; it must be new or empty")
    parser.add_argument("--static", action="store_true", help="the page without a server")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face Hub as this Space")
    parser.add_argument("--link", metavar="OWNER/NAME", help="the model's repository on the Hub, named by the card")
    parser.add_argument("--engine", type=Path, help="folder with the files of onnxruntime-web, instead of npm")
    options = parser.parse_args(arguments)
    for address in filter(None, (options.push, options.link)):
        parse_address(HUB_PREFIX + address)
    folders = [resolve(model) for model in options.models or shipped()]
    with _new_folder(options.out) as folder:
        _thumbnail(folders[0], folder / "thumbnail.png")
        if options.static:
            assemble_static(folder, folders, options.engine)
            # The threads of WebAssembly need these two headers.
            keys = "custom_headers:\n  cross-origin-embedder-policy: require-corp\n"
            keys += "  cross-origin-opener-policy: same-origin\n"
            _card(folder, "static", f"app_file: index.html\n{keys}", options, STATIC_TEXT)
        else:
            assemble(folder, folders)
            keys = f'sdk_version: {version("gradio")}\npython_version: "3.12"\napp_file: app.py\n'
            _card(folder, "gradio", f"{keys}suggested_hardware: cpu-basic\n", options, APP_TEXT)
    print(f"{options.out}: {sum(path.stat().st_size for path in options.out.rglob('*')) / 2**20:.1f} MiB")
    if options.push:
        print(push(options.out, HUB_PREFIX + options.push, space_sdk="static" if options.static else "gradio"))
    return 0


def assemble(out: Path, folders: Sequence[Path]) -> None:
    """The Gradio Space: app.py, demo, vae_runtime and the models at the root, and pinned requirements."""
    skip = shutil.ignore_patterns(
        "__pycache__", "exported", "web", "space.py", "static_site.py", "choose_starters.py", "draw.py"
    )
    for package in (demo, vae_runtime):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, out / source.name, ignore=skip)
    web = out / "demo" / "web"
    web.mkdir()
    shutil.copy(Path(__file__).with_name("web") / "enlarge.js", web)
    names = [ModelConfig.load(folder).name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        shutil.copytree(folder, out / "exported" / name, ignore=skip)
    (out / "app.py").write_text(APP.replace("{names}", repr(names).replace("'", '"')), encoding="utf-8")
    pins = "".join(f"{package}=={version(package)}\n" for package in PINNED)
    (out / "requirements.txt").write_text(pins, encoding="utf-8")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when all went well, and is gone otherwise. InputError if `out` holds files."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: not an empty folder; give a new one, nothing is overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as place:
        folder = Path(place, "space")
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()
        os.replace(folder, out)


def _thumbnail(model: Path, path: Path) -> None:
    with VAE.load(model, device="cpu") as vae:
        faces = vae.sample(24, rng=Starters.load(vae.config.name).seed)
        save_png(image_grid(faces, 6, scale=max(1, 96 // vae.image_size)), path)


def _card(out: Path, sdk: str, keys: str, options: argparse.Namespace, text: str) -> None:
    links = f"models: [{options.link}]\n" if options.link else ""
    if options.push:  # the Hub wants an address here, not a path
        links += f"thumbnail: https://huggingface.co/spaces/{options.push}/resolve/main/thumbnail.png\n"
    (out / "README.md").write_text(README.format(sdk=sdk, keys=keys, links=links, text=text), encoding="utf-8")
    (out / ".gitattributes").write_text(GIT_ATTRIBUTES, encoding="utf-8")


if __name__ == "__main__":
    run(main)
