"""The command line: python -m vae_runtime info | reconstruct | sample | interpolate."""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata

import numpy as np
import PIL

from vae_runtime import __version__
from vae_runtime.cli import Parser, add_device, existing_file, integer, number, output, run
from vae_runtime.errors import DeviceWarning
from vae_runtime.images import Pixels, image_grid, save_animation, save_png
from vae_runtime.latent import MAX_STEPS
from vae_runtime.model import VAE
from vae_runtime.session import why_not_cuda


def build_parser() -> Parser:
    parser = Parser(prog="python -m vae_runtime", description="Play an exported VAE through ONNX Runtime.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    info = verbs.add_parser("info", help="what runs where, and why not elsewhere")
    info.add_argument("model", nargs="?", help="a folder or hf:owner/name; the bundled model if not given")
    info.set_defaults(do=show_info)

    reconstruct = verbs.add_parser("reconstruct", help="originals over their reconstructions")
    reconstruct.add_argument("images", nargs="+", type=existing_file, metavar="IMAGE", help="pictures of faces")
    reconstruct.set_defaults(do=reconstruct_images)
    _add_output(reconstruct, "reconstructions.png", ".png")

    sample = verbs.add_parser("sample", help="new faces from the prior")
    sample.add_argument("-n", type=integer(1, 4096), default=16, help="how many")
    sample.add_argument("--seed", type=integer(0, 2**63 - 1), default=0, help="the same seed gives the same faces")
    sample.add_argument("--temperature", type=number(0, 10), default=1.0, help="below 1 more alike, above 1 wilder")
    sample.set_defaults(do=sample_faces)
    _add_output(sample, "samples.png", ".png")

    between = verbs.add_parser("interpolate", help="the way from one face to another")
    between.add_argument("a", type=existing_file, metavar="A", help="the first picture")
    between.add_argument("b", type=existing_file, metavar="B", help="the last picture")
    between.add_argument(
        "--steps", type=integer(2, min(MAX_STEPS, 1000)), default=8, help="pictures, both ends counted"
    )
    between.add_argument("--method", choices=("slerp", "lerp"), default="slerp", help="on the sphere or straight")
    between.add_argument("--fps", type=number(0.1, 50), default=12.0, help="frames a second of a .gif or .webp")
    between.set_defaults(do=interpolate_faces)
    _add_output(between, "interpolation.png", ".png", ".gif", ".webp")

    for verb in verbs.choices.values():
        add_device(verb)
    return parser


def _add_output(verb: argparse.ArgumentParser, default: str, *endings: str) -> None:
    verb.add_argument("--model", help="a folder or hf:owner/name; the bundled model if not given")
    verb.add_argument("-o", "--output", type=output(*endings), default=default, help="the file to write")
    verb.add_argument("--scale", type=integer(1, 32), default=4, help="screen pixels for each pixel of a face")


def show_info(arguments: argparse.Namespace) -> None:
    for name, value in describe_environment().items():
        print(f"{name:<24}{value}")
    vae = VAE.load(arguments.model, device=arguments.device)
    config = vae.config
    data = config.training_data
    print(f"{'model':<24}{config.name} ({config.preset}), id {config.model_id}")
    print(f"{'pictures':<24}{config.image_size} x {config.image_size} RGB, latent_dim {config.latent_dim}")
    print(f"{'trained on':<24}{data.count} faces of {data.name}, likelihood {config.likelihood}, beta {config.beta:g}")
    for metric, figure in config.metrics.items():
        print(f"{metric:<24}{figure:.4g}")
    print(f"{'runs on':<24}{vae.device} ({', '.join(vae.encoder.session.get_providers())})")
    reason = None if vae.device.startswith("cuda") else why_not_cuda()
    print(f"{'CUDA':<24}{reason or 'available'}")


def describe_environment() -> dict[str, str]:
    """The versions that decide what runs, by name; an ONNX Runtime wheel that is not installed is not listed."""
    found = {"vae_runtime": __version__, "python": platform.python_version()}
    for wheel in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[wheel] = metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
    if {"onnxruntime", "onnxruntime-gpu"} <= found.keys():
        found["conflict"] = "both wheels overwrite each other; pip uninstall both, then install one"
    return found | {"numpy": np.__version__, "pillow": PIL.__version__}


def reconstruct_images(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, device=arguments.device)
    originals = vae.prepare(arguments.images)
    pictures = np.concatenate([originals, vae.reconstruct(originals)])
    _write(image_grid(pictures, len(originals), scale=arguments.scale), arguments)


def sample_faces(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, device=arguments.device)
    faces = vae.sample(arguments.n, rng=arguments.seed, temperature=arguments.temperature)
    _write(image_grid(faces, scale=arguments.scale), arguments)


def interpolate_faces(arguments: argparse.Namespace) -> None:
    vae = VAE.load(arguments.model, device=arguments.device)
    faces = vae.interpolate(arguments.a, arguments.b, steps=arguments.steps, method=arguments.method)
    if arguments.output.suffix.lower() == ".png":
        _write(image_grid(faces, len(faces), scale=arguments.scale), arguments)
        return
    frames = [image_grid(face[None], scale=arguments.scale, gap=0) for face in faces]
    print(save_animation(frames, arguments.output, arguments.fps))


def _write(sheet: Pixels, arguments: argparse.Namespace) -> None:
    print(save_png(sheet, arguments.output))


def main(arguments: Sequence[str]) -> int:
    parsed = build_parser().parse_args(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeviceWarning)
        parsed.do(parsed)
    for warning in caught:
        if parsed.verb != "info":
            print(f"note: {warning.message}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run(main)
