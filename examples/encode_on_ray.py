"""The codes of all pictures of a folder as Parquet, on the cores of this machine or of a Ray cluster.

    pip install -e ".[cpu]" "ray[data]"
    python examples/encode_on_ray.py faces/ codes/ --workers 8

Each worker is a process that loads the model once and keeps one core busy. The folder may be anything that Ray Data
reads, such as s3://. `encode` does not depend on Ray: one machine and a hundred run the same function.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends statistics to its makers otherwise

import numpy as np
import pyarrow as pa
import ray

from vae_runtime import VAE, ImageError

BATCH = 64


def encode(vae: VAE, paths: list[str], files: list[bytes]) -> pa.Table:
    """path, mu and logvar of each picture; files that cannot be read are named on stderr and left out."""
    found, faces = [], []
    for path, data in zip(paths, files, strict=True):
        try:
            faces.append(vae.prepare(data)[0])
            found.append(path)
        except ImageError as error:
            print(f"left out {path}: {str(error).removeprefix('image: ')}", file=sys.stderr)
    size = vae.image_size
    codes = vae.encode(np.stack(faces) if faces else np.empty((0, size, size, 3), np.uint8))
    mu, logvar = (pa.FixedSizeListArray.from_arrays(code.ravel(), vae.latent_dim) for code in codes)
    return pa.table({"path": pa.array(found, pa.string()), "mu": mu, "logvar": logvar})


def for_every_machine(model: str | None) -> str | None:
    """A model as workers with another working folder find it: hf: addresses stay, paths become absolute."""
    return model if model is None or model.startswith("hf:") else os.path.abspath(model)


class Encoder:
    """A worker's state: the model, opened once."""

    def __init__(self, model: str | None, variant: Any) -> None:
        self.vae = VAE.load(model, variant=variant, device="cpu", threads=1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return encode(self.vae, batch["path"].to_pylist(), batch["bytes"].to_pylist())


def main() -> None:
    parser = argparse.ArgumentParser(description="Encode a folder of pictures on Ray Data.")
    parser.add_argument("images", help="a folder, or a URL that Ray Data reads")
    parser.add_argument("out", help="folder for the Parquet files; existing ones stay")
    parser.add_argument(
        "--model", help="a folder, the same on each machine, or hf:owner/name (default: the bundled model)"
    )
    parser.add_argument("--variant", choices=("fp16", "int8"), help="smaller graphs, if the model has them")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: the number of cores)")
    parser.add_argument("--address", help="of a Ray cluster (default: this machine alone)")
    given = parser.parse_args()
    if given.address:
        ray.init(given.address)
    else:
        # One more than workers: reading and writing files needs a core, too, or everything waits for everything.
        ray.init(num_cpus=given.workers + 1, include_dashboard=False)
    pictures = ray.data.read_binary_files(given.images, include_paths=True)
    codes = pictures.map_batches(
        Encoder,
        fn_constructor_args=(for_every_machine(given.model), given.variant),
        batch_size=BATCH,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=given.workers),
    )
    codes.write_parquet(given.out)
    ray.shutdown()


if __name__ == "__main__":
    main()
