"""Pictures of folders that are nearly the same: resized, recompressed, or slightly changed copies.

    pip install -e ".[cpu]"
    python examples/near_duplicates.py faces/ more/ --threshold 0.98

Prints a group a line, the largest file first: keep that one, look at the others. Codes are compared in blocks, so that
100,000 pictures take minutes and little memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_runtime import VAE, find_images

BLOCK = 1024


def encode(vae: VAE, paths: list[Path]) -> tuple[list[Path], NDArray[np.float32]]:
    """The pictures that can be read, and their codes scaled to length 1, (n, latent_dim)."""
    batches = vae.iter_encode(paths, on_error="skip")
    codes = np.concatenate([mu for mu, _ in batches] or [np.empty((0, vae.latent_dim), np.float32)])
    unreadable = dict(batches.skipped)
    for error in unreadable.values():
        print(f"left out: {error}", file=sys.stderr)
    kept = [path for position, path in enumerate(paths) if position not in unreadable]
    return kept, codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)


def similar_pairs(codes: NDArray[np.float32], threshold: float) -> Iterator[tuple[int, int]]:
    """All i < j whose codes have a cosine of at least `threshold`."""
    for start in range(0, len(codes), BLOCK):
        for other in range(start, len(codes), BLOCK):
            cosines = codes[start : start + BLOCK] @ codes[other : other + BLOCK].T
            rows, columns = np.nonzero(cosines >= threshold)
            yield from (
                (start + i, other + j)
                for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
                if start + i < other + j
            )


def group(count: int, pairs: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Connected groups of at least two."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        parent[root(j)] = root(i)
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(root(i), []).append(i)
    return [members for members in groups.values() if len(members) > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Find pictures that are nearly the same.")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--threshold", type=float, default=0.98, help="smallest cosine (default: %(default)s)")
    parser.add_argument("--model", help="a model's folder or hf:owner/name (default: the bundled model)")
    given = parser.parse_args()

    with VAE.load(given.model, device="cpu") as vae:
        paths, codes = encode(vae, list(find_images(given.folders)))
    groups = group(len(paths), similar_pairs(codes, given.threshold))
    for members in groups:
        found = sorted((paths[i] for i in members), key=lambda path: -path.stat().st_size)
        print("  ".join(str(path) for path in found))
    print(f"{len(paths)} pictures, {len(groups)} groups of near-duplicates", file=sys.stderr)


if __name__ == "__main__":
    main()
