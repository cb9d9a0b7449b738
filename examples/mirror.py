"""A video or a camera, each frame beside what the model makes of it.

    pip install -e ".[cpu]" opencv-python-headless
    python examples/mirror.py in.mp4 out.webm
    python examples/mirror.py 0 out.webm --seconds 10

The central square of each frame is used. Colors are BGR in OpenCV and RGB in the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from vae_runtime import VAE


def main() -> None:
    parser = argparse.ArgumentParser(description="Reconstruct each frame of a video or a camera.")
    parser.add_argument("source", help="a video, or the number of a camera")
    parser.add_argument("target", help="a .webm file")
    parser.add_argument("--side", type=int, default=256, help="of each half, in pixels (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="length, at most (default: to the end of the video)")
    parser.add_argument("--model", help="a model's folder or hf:owner/name (default: the bundled model)")
    given = parser.parse_args()

    if Path(given.source).resolve() == Path(given.target).resolve():
        sys.exit(f"{given.target}: is the source; give the video another name")
    video = cv2.VideoCapture(int(given.source) if given.source.isdigit() else given.source)
    if not video.isOpened():
        sys.exit(f"{given.source}: not a video or camera that OpenCV can open")
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    writer = cv2.VideoWriter(given.target, cv2.VideoWriter.fourcc(*"VP90"), rate, (2 * given.side, given.side))
    if not writer.isOpened():
        sys.exit(f"{given.target}: cannot be written; expected a .webm file in an existing folder")
    frames = 0
    with VAE.load(given.model, device="cpu") as vae:
        while given.seconds is None or frames < given.seconds * rate:
            more, frame = video.read()
            if not more:
                break
            face = vae.prepare(frame[..., ::-1])
            pair = np.concatenate([face, vae.reconstruct(face)])
            halves = [cv2.resize(half, (given.side,) * 2, interpolation=cv2.INTER_NEAREST) for half in pair]
            writer.write(np.hstack(halves)[..., ::-1].copy())
            frames += 1
    writer.release()
    video.release()
    print(f"{given.target}: {frames} frames")


if __name__ == "__main__":
    main()
