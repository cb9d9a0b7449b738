"""What each verb of `python -m vae_runtime` does with its parsed arguments."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_runtime import latent, latent_analysis
from vae_runtime.cli import diagnostics
from vae_runtime.cli.arguments import EXIT_FAILURE, UsageError, one_line, progress
from vae_runtime.config import CARD_FILE, CONFIG_FILE, PRIOR_FILE, VARIANTS, ModelConfig, graph_files
from vae_runtime.directions import Directions
from vae_runtime.errors import ImageError, InputError, VAEError
from vae_runtime.figures import check_figure, image_grid, save_animation, save_png, sheet_shape
from vae_runtime.golden import Golden
from vae_runtime.hub import push, resolve
from vae_runtime.images import Pixels, load_image, prepare
from vae_runtime.model import VAE
from vae_runtime.ort.graph import MAX_BATCH
from vae_runtime.ort.verify import read_verified
from vae_runtime.picture_files import find_images
from vae_runtime.prior import Prior, text_code
from vae_runtime.stream import CodesFile, batches, check_codes, open_codes, prefetch, read_names

_SCALE, _FPS, _WALK_FACES = 4, 12.0, 8  # defaults
_SHOWN = 50  # files that were left out, by name
_HIDDEN = np.uint8(128)  # the gray of the part to paint


def load(arguments: argparse.Namespace) -> VAE:
    """The model that --model, --variant and --device name."""
    vae = VAE.load(arguments.model, variant=arguments.variant, device=arguments.device)
    if arguments.verbose:
        print(f"{vae.config.name} runs on {diagnostics.device_line(vae)}", file=sys.stderr)
    return vae


def info(arguments: argparse.Namespace) -> int:
    _show(diagnostics.environment())
    wrong, repair = diagnostics.diagnose()
    runs = True
    try:
        vae = load(arguments)
        folder = resolve(arguments.model, arguments.variant)
        _show(_describe(vae) | diagnostics.nodes(vae, folder) | diagnostics.probe(vae))
    except VAEError as error:
        runs = False
        _show({"no model runs": str(error)})
    if not runs or not vae.device.startswith("cuda"):
        _show({"why not CUDA": diagnostics.why_cpu() or "it was not asked for"})
    _show({"wrong": wrong, "repair": repair} if wrong else {"wrong": "nothing"})
    return 0 if runs else EXIT_FAILURE


def check(arguments: argparse.Namespace) -> int:
    folder = resolve(arguments.model, arguments.variant)
    with load(arguments) as vae:
        found = Golden.load(folder).check(vae)
        passed = found.within(vae.variant)
        verdict = "" if passed else f", more than expected of {vae.variant or 'float32'}"
        name = f"{vae.config.name}{f', {vae.variant},' if vae.variant else ''} on {vae.device}"
        print(f"{name}: pictures differ by at most {found.pixels} of 255, codes by {found.codes:.1g}{verdict}")
    return 0 if passed else EXIT_FAILURE


def _describe(vae: VAE) -> dict[str, str]:
    config, data = vae.config, vae.config.training_data
    found = [variant for variant in VARIANTS if config.files.keys() >= set(graph_files(variant))]
    return {
        "model": f"{config.name} ({config.preset}), id {config.model_id}",
        "pictures": f"{config.image_size} x {config.image_size} RGB, latent_dim {config.latent_dim}",
        "variant": f"{vae.variant or 'float32'}, of float32{', '.join(['', *found])}",
        "prior": f"{vae.prior.kind}, fitted" if PRIOR_FILE in config.files else vae.prior.kind,
        "directions": ", ".join(vae.directions.names) if vae.directions else "none named",
        "attributes": _attributes(vae),
        "trained on": f"{data.count} faces of {data.name}, likelihood {config.likelihood}, beta {config.beta:g}",
        **{metric: f"{figure:.4g}" for metric, figure in config.metrics.items()},
        "runs on": diagnostics.device_line(vae),
    }


def _attributes(vae: VAE) -> str:
    """ "hair (blue, red), eyes (green, blue)", for --where."""
    known = vae.classifiers.values if vae.classifiers else {}
    return ", ".join(f"{name} ({', '.join(values)})" for name, values in known.items()) or "none"


def _show(facts: dict[str, str]) -> None:
    for name, value in facts.items():
        print(f"{one_line(name):<24}{one_line(value)}")


def reconstruct(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    _check_output(arguments, vae, 2 * len(arguments.images), columns=len(arguments.images))
    originals = vae.prepare(arguments.images)
    _write_sheet(np.concatenate([originals, vae.reconstruct(originals)]), len(originals), arguments)


def sample(arguments: argparse.Namespace) -> None:
    where = dict(arguments.where) if arguments.where else None
    if where is not None and len(where) < len(arguments.where):
        raise UsageError("--where: names a column twice; give one value for each")
    vae = load(arguments)
    _check_output(arguments, vae, arguments.n)
    options = arguments.seed or 0, _temperature(arguments), arguments.truncation, _prior(arguments, vae), where
    _write_sheet(vae.sample(arguments.n, *options), None, arguments)


def _temperature(arguments: argparse.Namespace) -> float:
    return 1.0 if arguments.temperature is None else float(arguments.temperature)


def _prior(arguments: argparse.Namespace, vae: VAE) -> Prior:
    """What --prior names: the model's own, N(0, I), or a file."""
    if arguments.prior == "unit":
        return Prior.standard(vae.latent_dim)
    if arguments.prior in (None, "model"):
        return vae.prior
    prior = Prior.load(arguments.prior)
    if prior.latent_dim != vae.latent_dim:
        raise InputError(f"{arguments.prior}: for codes of {prior.latent_dim} numbers, this model has {vae.latent_dim}")
    return prior


def avatar(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    _check_output(arguments, vae, len(arguments.texts))
    prior = _prior(arguments, vae)
    codes = [text_code(text, prior, arguments.temperature) for text in arguments.texts]
    _write_sheet(vae.decode(np.stack(codes)), None, arguments)


def adapt(arguments: argparse.Namespace) -> None:
    if arguments.output.exists():
        raise InputError(f"{arguments.output}: exists already; choose another name")
    vae = load(arguments)
    unreadable: list[str] = []
    found = find_images(arguments.images)
    parts = progress(_read_ahead(vae, map(str, found), MAX_BATCH, unreadable), "adapt")
    faces = [face for part in parts for _, face in part]
    _report(unreadable + found.skipped)
    prior = vae.fit_prior(faces)
    print(f"{prior.save(arguments.output)}: a prior ({prior.kind}) fitted to {len(faces)} pictures")


def interpolate(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    _check_output(arguments, vae, 1, arguments.steps, columns=arguments.steps)
    faces = vae.interpolate(arguments.a, arguments.b, steps=arguments.steps, method=arguments.method)
    _write_frames(faces[:, None], arguments, columns=len(faces))


def walk(arguments: argparse.Namespace) -> None:
    sampling = [name for name in ("n", "seed", "temperature", "prior") if getattr(arguments, name) is not None]
    if arguments.images and sampling:
        raise UsageError(f"--{sampling[0]}: is for new faces, and pictures are given; leave one of them out")
    if len(arguments.images) == 1:
        raise UsageError("IMAGE: got 1 picture, expected two or more to pass, or none for new faces")
    vae = load(arguments)
    count = len(arguments.images) or arguments.n or _WALK_FACES
    frames = (count - arguments.open) * arguments.steps + arguments.open
    _check_output(arguments, vae, 1, frames, columns=arguments.steps)
    if arguments.images:
        keys = vae.encode(arguments.images)[0]
    else:
        keys = _prior(arguments, vae).sample(count, arguments.seed or 0, _temperature(arguments))
    codes = latent.path(keys, arguments.steps, arguments.method, closed=not arguments.open)
    faces = np.concatenate(list(progress(vae.iter_decode(codes), "walk", len(codes))))
    _write_frames(faces[:, None], arguments, columns=arguments.steps)


def edit(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    _check_output(arguments, vae, len(arguments.images), arguments.steps, columns=arguments.steps)
    vector = _direction(arguments, vae)
    mu = vae.encode(arguments.images)[0]
    amounts = np.linspace(-arguments.strength, arguments.strength, arguments.steps)
    frames = np.stack([vae.decode(mu + amount * vector) for amount in amounts])
    _write_frames(frames, arguments, columns=arguments.steps)


def _direction(arguments: argparse.Namespace, vae: VAE) -> NDArray[np.floating]:
    """The vector that --direction names, in the file of --directions first; without a name, the first there is."""
    own = Directions.load(arguments.directions) if arguments.directions else None
    if own is not None and own.vectors.shape[1] != vae.latent_dim:
        raise InputError(
            f"{arguments.directions}: for codes of {own.vectors.shape[1]} numbers, this model has {vae.latent_dim}"
        )
    known = own or vae.directions
    name = arguments.direction or (known.names[0] if known is not None else _most_active_latent(vae))
    models = vae.directions.names if vae.directions is not None else ()
    if own is not None and (name in own.names or not (name in models or re.fullmatch(r"z\d+", name))):
        return vae.direction(own[name])
    return vae.direction(name)


def _most_active_latent(vae: VAE) -> str:
    """The latent that changes the picture most: many latents of a VAE have no effect."""
    middle = vae.decode(np.zeros(vae.latent_dim)).astype(int)
    moved = [np.abs(vae.decode(2 * code) - middle).sum() for code in np.eye(vae.latent_dim)]
    return f"z{np.argmax(moved)}"


def invert(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    originals = vae.prepare(arguments.images)
    if arguments.output.suffix.lower() == ".npy":
        if arguments.scale is not None:
            raise UsageError(f"--scale: is for pictures, and {arguments.output} holds codes")
        with _codes_file(arguments, vae) as file:
            file.append(list(arguments.images), vae.invert(originals, steps=arguments.steps))
        print(arguments.output)
        return
    _check_output(arguments, vae, 3 * len(originals), columns=len(originals))
    codes = vae.invert(originals, steps=arguments.steps)
    pictures = np.concatenate([originals, vae.reconstruct(originals), vae.decode(codes)])
    _write_sheet(pictures, len(originals), arguments)


def inpaint(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    image = load_image(arguments.image)
    mask = arguments.mask or _boxed(image, arguments.box)
    painted = vae.inpaint(image, mask, arguments.steps)
    _, hidden = vae.prepare_masked(image, mask)
    original = vae.prepare(image)
    pictures = np.concatenate([original, np.where(hidden[..., None], _HIDDEN, original), painted])
    _write_sheet(pictures, 3, arguments)


def _boxed(image: Pixels, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    x, y, width, height = box
    if x + width > image.shape[1] or y + height > image.shape[0]:
        raise InputError(f"--box {x},{y},{width},{height}: reaches out of {image.shape[1]} x {image.shape[0]} pixels")
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[y : y + height, x : x + width] = True
    return mask


def upscale(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    _check_output(arguments, vae, 2 * len(arguments.images), columns=len(arguments.images))
    large = vae.upscale(arguments.images, arguments.side, arguments.steps)
    small = prepare(arguments.images, arguments.side)
    blocks = small.repeat(vae.image_size // arguments.side, axis=1).repeat(vae.image_size // arguments.side, axis=2)
    _write_sheet(np.concatenate([blocks, large]), len(large), arguments)


def nearest(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    names, codes = _known_faces(arguments, vae)
    count = min(arguments.n, len(codes))
    _check_output(arguments, vae, len(arguments.images) * (1 + count), columns=1 + count)
    pictures = vae.prepare(arguments.images)
    places, distances = latent_analysis.nearest(vae.encode(pictures)[0], codes, count, arguments.metric)
    faces = vae.decode(codes[places.ravel()]).reshape(*places.shape, *pictures.shape[1:])
    for image, row, far in zip(arguments.images, places, distances, strict=True):
        print(one_line(image))
        for place, distance in zip(row, far, strict=True):
            print(f"  {distance:.3f}  {one_line(names[place])}")
    _write_sheet(
        np.concatenate([pictures[:, None], faces], axis=1).reshape(-1, *pictures.shape[1:]), 1 + count, arguments
    )


def _known_faces(arguments: argparse.Namespace, vae: VAE) -> tuple[Sequence[str], NDArray[np.float32]]:
    """Names and codes (n, latent_dim) to search in: those of --codes, or of the model."""
    if arguments.codes:
        codes = open_codes(arguments.codes, vae.latent_dim)
        check_codes(arguments.codes, vae.config.model_id, vae.variant)
        if not len(codes):
            raise InputError(f"{arguments.codes}: holds no codes; encode some pictures first")
        return read_names(arguments.codes), codes
    if vae.neighbors is None:
        raise InputError(f"{vae.config.name}: has no known faces; encode your own and give the file with --codes")
    return vae.neighbors.names, vae.neighbors.codes


def attributes(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    found = vae.attributes(arguments.images)
    values = vae.classifiers.values if vae.classifiers else {}
    for row, image in enumerate(arguments.images):
        best = {name: int(np.argmax(probability[row])) for name, probability in found.items()}
        shown = (f"{name}={values[name][place]} ({found[name][row, place]:.0%})" for name, place in best.items())
        print(one_line(f"{image}: {', '.join(shown)}"))


def encode(arguments: argparse.Namespace) -> None:
    vae = load(arguments)
    unreadable: list[str] = []
    with _codes_file(arguments, vae, resume=arguments.resume) as codes:
        found = find_images(arguments.images, known=codes.done())
        parts = _read_ahead(vae, map(str, found), arguments.batch, unreadable)
        try:
            for part in progress(parts, "encode"):
                if part:
                    codes.append([name for name, _ in part], vae.encode(np.stack([face for _, face in part]))[0])
        except KeyboardInterrupt:
            print(f"interrupted: {codes.count} codes are saved; --resume continues with the rest", file=sys.stderr)
            raise
    _report(unreadable + found.skipped)
    if not codes.count:
        raise InputError(
            f"{', '.join(arguments.images)}: no pictures that can be read, so {codes.path} was not written"
        )
    print(f"{codes.path}: {codes.count} codes of {codes.latent_dim} numbers, names in {codes.names_path}")


def _codes_file(arguments: argparse.Namespace, vae: VAE, resume: bool = False) -> CodesFile:
    model_id, variant = vae.config.model_id, vae.variant
    return CodesFile(arguments.output, vae.latent_dim, model_id=model_id, variant=variant, resume=resume)


def _report(left_out: Sequence[str]) -> None:
    """Name the files that were left out, the first of many."""
    for sentence in left_out[:_SHOWN]:
        print(f"note: left out {one_line(sentence)}", file=sys.stderr)
    if len(left_out) > _SHOWN:
        print(f"note: left out {len(left_out) - _SHOWN} more", file=sys.stderr)


def _read_ahead(
    vae: VAE, names: Iterable[str], batch: int, unreadable: list[str]
) -> Iterator[list[tuple[str, Pixels]]]:
    """Names and prepared pictures, batch by batch, read in a thread of their own; see `_read`."""
    return prefetch(_read(vae, part, unreadable) for part in batches(names, batch))


def _read(vae: VAE, names: list[str], unreadable: list[str]) -> list[tuple[str, Pixels]]:
    """The pictures of one batch that can be read; the errors of the others go into `unreadable`."""
    found = []
    for name in names:
        try:
            found.append((name, vae.prepare(name)[0]))
        except ImageError as error:
            unreadable.append(str(error))
    return found


def push_model(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.folder)
    config = ModelConfig.load(folder)
    for file, digest in config.files.items():
        read_verified(folder / file, digest)
    # The card shows pictures, which have no digest.
    print(push(folder, arguments.repository, [CONFIG_FILE, CARD_FILE, "*.png", *config.files], arguments.private))


def _check_output(
    arguments: argparse.Namespace, vae: VAE, faces: int, frames: int = 1, columns: int | None = None
) -> None:
    """Refuse an output that its format or the memory cannot hold, before the work starts; see `_write_frames`."""
    size, scale = vae.image_size, arguments.scale or _SCALE
    if arguments.output.suffix.lower() == ".png":
        if getattr(arguments, "fps", None) is not None:
            raise UsageError(f"--fps: is for animations, and {arguments.output} is a still picture")
        check_figure(arguments.output, *sheet_shape(faces * frames, size, size, columns, scale=scale))
    else:
        check_figure(arguments.output, *sheet_shape(faces, size, size, faces, scale=scale, gap=0), frames)


def _write_sheet(pictures: Pixels, columns: int | None, arguments: argparse.Namespace) -> None:
    print(save_png(image_grid(pictures, columns, scale=arguments.scale or _SCALE), arguments.output))


def _write_frames(frames: Pixels, arguments: argparse.Namespace, columns: int) -> None:
    """frames (n, faces, S, S, 3): an animation of all faces side by side, or a sheet with a row for each face."""
    if arguments.output.suffix.lower() == ".png":
        _write_sheet(frames.swapaxes(0, 1).reshape(-1, *frames.shape[2:]), columns, arguments)
        return
    pictures = [image_grid(faces, len(faces), scale=arguments.scale or _SCALE, gap=0) for faces in frames]
    print(save_animation(pictures, arguments.output, arguments.fps or _FPS))
