"""The pictures of a folder that are most like a given one.

    pip install -e ".[cpu]"
    python examples/alike.py me.png faces/ --count 5

Pictures are compared by their codes: the cosine of the angle between them is 1 for the same picture.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from vae_runtime import VAE, VAEError, find_images, nearest


def main() -> None:
    parser = argparse.ArgumentParser(description="Find the pictures of a folder that are most like a given one.")
    parser.add_argument("picture")
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=3, help="pictures to show (default: %(default)s)")
    parser.add_argument("--model", help="a model's folder or hf:owner/name (default: the bundled model)")
    given = parser.parse_args()

    with VAE.load(given.model, device="cpu") as vae:
        paths = list(find_images(given.folder))
        batches = vae.iter_encode(paths, on_error="skip")  # reads the next batch while one is encoded
        codes = np.concatenate([mu for mu, _ in batches] or [np.empty((0, vae.latent_dim), np.float32)])
        unreadable = {position for position, _ in batches.skipped}
        paths = [path for position, path in enumerate(paths) if position not in unreadable]
        if not paths:
            sys.exit(f"{given.folder}: no pictures that can be read")
        wanted, _ = vae.encode(given.picture)
    places, distances = nearest(wanted, codes, count=min(given.count, len(paths)), metric="cosine")
    for place, distance in zip(places[0], distances[0], strict=True):
        print(f"{1 - distance:.3f}  {paths[place]}")


if __name__ == "__main__":
    try:
        main()
    except VAEError as error:
        sys.exit(f"{error}")
