"""Mutated files against the runtime: `python fuzz.py pictures|graphs|configs SEED COUNT`.

Each case is made from (SEED, its number) alone. Right is an answer or an error of the project; anything else is printed
with its number and ends the process with 1. A crash ends it with a signal, a hang with the time limit of the caller.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_model import DIM, SIZE, build_model

from vae_runtime import VAE, ModelConfig, VAEError, load_image

TOKENS = (
    b"\0",
    b"\xff",
    b"\xff\xda",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"NaN",
    b"1e999",
    b"null",
    b"{",
    b"]",
    b'"',
    b"-1",
)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight changes: a bit, a byte, a token, a cut, a piece doubled, moved or left out."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        place, other = sorted(int(n) for n in rng.integers(0, max(1, len(changed)), 2))
        token = TOKENS[rng.integers(len(TOKENS))]
        piece = bytes(changed[place : place + int(rng.integers(1, 64))])
        kind = rng.integers(8)
        if not changed:
            changed += token
        elif kind == 0:
            changed[place] ^= 1 << rng.integers(8)
        elif kind == 1:
            changed[place] = rng.integers(256)
        elif kind == 2:
            changed[place : place + len(token)] = token
        elif kind == 3:
            changed[place:place] = token
        elif kind == 4:
            del changed[place : place + len(piece)]
        elif kind == 5:
            changed[other:other] = piece
        elif kind == 6:
            changed[place : place + 4] = rng.bytes(4)
        elif rng.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def pictures() -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for mode in ("RGB", "RGBA", "L", "P", "CMYK", "I;16", "1"):
        colors = rng.integers(0, 256, (19, 23, 3), np.uint8)
        picture = Image.fromarray(colors).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            picture = Image.fromarray(colors[..., 0].astype(np.uint16) * 257)
        for kind, options in (
            ("PNG", {}),
            ("JPEG", {"progressive": True}),
            ("WEBP", {}),
            ("GIF", {"save_all": True, "append_images": [picture]}),
            ("BMP", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("AVIF", {}),
        ):
            buffer = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6
            try:
                picture.save(buffer, kind, **options, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
            except (OSError, ValueError):  # a mode that this format does not have
                continue
            found.append(buffer.getvalue())
    return found


def try_picture(seeds: list[bytes], rng: np.random.Generator, folder: Path) -> None:
    pixels = load_image(mutate(seeds[rng.integers(len(seeds))], rng))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def try_graph(seeds: list[bytes], rng: np.random.Generator, folder: Path) -> None:
    """A damaged graph whose digest is right, as if it was made so."""
    which = int(rng.integers(2))
    config = ModelConfig.from_json(seeds[2].decode()).to_dict()
    for index, name in enumerate(("encoder.onnx", "decoder.onnx")):
        data = mutate(seeds[index], rng) if index == which else seeds[index]
        (folder / name).write_bytes(data)
        config["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    with VAE.load(folder, device="cpu", threads=1) as vae:
        mu, logvar = vae.encode(np.zeros((2, SIZE, SIZE, 3), np.uint8))
        assert mu.shape == logvar.shape == (2, DIM)
        assert vae.decode(np.zeros((2, DIM))).shape == (2, SIZE, SIZE, 3)


def try_config(seeds: list[bytes], rng: np.random.Generator, folder: Path) -> None:
    (folder / "config.json").write_bytes(mutate(seeds[2], rng))
    config = ModelConfig.load(folder)
    assert ModelConfig.from_json(config.to_json()) == config


def main(kind: str, seed: int, count: int) -> int:
    faulthandler.enable()
    warnings.simplefilter("ignore")  # Pillow warns of large pictures and broken EXIF
    attempt = {"pictures": try_picture, "graphs": try_graph, "configs": try_config}[kind]
    refused = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build_model(folder)
        files = ("encoder.onnx", "decoder.onnx", "config.json")
        seeds = pictures() if kind == "pictures" else [(folder / name).read_bytes() for name in files]
        for number in range(count):
            try:
                attempt(seeds, np.random.default_rng([seed, number]), folder)
            except VAEError:
                refused += 1
            except BaseException:
                print(f"{kind}, seed {seed}, case {number}", file=sys.stderr)
                raise
    print(refused)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
