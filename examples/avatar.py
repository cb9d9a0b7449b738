"""A face for a name, as a profile picture: the same face for the same name, on every machine.

pip install -e ".[cpu]"
python examples/avatar.py "Ada Lovelace" -o ada.png --side 256
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vae_runtime import VAE, save_png
from vae_runtime.images import Pixels


def avatar(vae: VAE, name: str, side: int) -> Pixels:
    """uint8 (side, side, 3), enlarged smoothly."""
    face = Image.fromarray(vae.face_of(name))
    return np.asarray(face.resize((side, side), Image.Resampling.LANCZOS))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the face of a name.")
    parser.add_argument("name", help="any text; upper and lower case are the same")
    parser.add_argument("-o", "--output", type=Path, default=Path("avatar.png"), help="(default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="in pixels (default: %(default)s)")
    parser.add_argument("--model", help="a model's folder or hf:owner/name (default: the bundled model)")
    given = parser.parse_args()

    with VAE.load(given.model, device="cpu") as vae:
        print(save_png(avatar(vae, given.name, given.side), given.output))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")
