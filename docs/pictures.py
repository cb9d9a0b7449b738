"""Draws the pictures of README and docs from the shipped models, and runs the notebook: python docs/pictures.py

Every face is drawn by a model, or is an avatar that no model was trained on. No picture of the anime data is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vae_runtime import VAE, image_grid, save_png
from vae_runtime.images import BACKGROUND, Pixels
from vae_runtime.latent import interpolate

HERE = Path(__file__).parent
MODELS = HERE.parent / "exported"
TOUR = HERE.parent / "examples" / "tour.ipynb"
COLUMNS, GAP, LEFT, INK = 10, 4, 132, (34, 34, 34)
SEED, TEMPERATURE = 11, 1.0
FACES = (3, 8)
"""The two of the sampled faces that the rows start from."""
NAMES = ("Ada", "Alan", "Barbara", "Donald", "Edsger", "Frances", "Grace", "John", "Katherine", "Margaret")


def drawn(vae: VAE, count: int) -> tuple[np.ndarray, Pixels]:
    """Codes from the prior, and their faces."""
    codes = vae.prior.sample(count, SEED, TEMPERATURE)
    return codes, vae.decode(codes)


def repaired(vae: VAE, faces: Pixels) -> Pixels:
    """Pairs: a face with a hidden part, and the same painted anew."""
    side = vae.image_size
    mask = np.zeros((side, side), np.bool_)
    mask[side * 3 // 8 : side * 3 // 4, side // 8 : side // 2] = True
    hidden = faces.copy()
    hidden[:, mask] = BACKGROUND
    return np.stack([hidden, vae.inpaint(faces, mask)], axis=1).reshape(-1, side, side, 3)


def rows(vae: VAE, avatars: VAE) -> list[tuple[str, Pixels]]:
    """Label and `COLUMNS` faces of each row."""
    codes, faces = drawn(vae, 4 * COLUMNS)
    first, second = FACES
    strengths = np.linspace(-3, 3, COLUMNS)[:, None]
    edit = vae.decode(codes[first] + strengths * vae.direction("hair-blue"))
    morph = vae.decode(interpolate(codes[first], codes[second], COLUMNS))
    return [
        ("new faces", faces[:COLUMNS]),
        ("morphs", morph),
        ("edits: hair", edit),
        ("repairs", repaired(vae, faces[COLUMNS : COLUMNS + COLUMNS // 2])),
        ("faces of names", np.stack([vae.face_of(name) for name in NAMES])),
        ("your own data", avatars.sample(COLUMNS, rng=SEED, temperature=TEMPERATURE)),
    ]


def labeled(rows: Sequence[tuple[str, Pixels]]) -> Pixels:
    """One sheet, a row each, its label at the left."""
    height, width = rows[0][1].shape[1:3]
    sheet = Image.new("RGB", (LEFT + COLUMNS * (width + GAP), len(rows) * (height + GAP) + GAP), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for index, (label, faces) in enumerate(rows):
        top = GAP + index * (height + GAP)
        pen.text((GAP, top + height // 2), label, INK, ImageFont.load_default(16), anchor="lm")
        for column, face in enumerate(faces):
            sheet.paste(Image.fromarray(face), (LEFT + column * (width + GAP), top))
    return np.asarray(sheet)


def run_notebook(path: Path) -> None:
    """Execute a notebook in place, and keep one PNG of each picture."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)
    nbformat.write(notebook, path)


def main() -> None:
    with VAE.load(device="cpu") as vae, VAE.load(MODELS / "avatars-64", device="cpu") as avatars:
        sheet = image_grid(vae.sample(36, rng=SEED, temperature=TEMPERATURE), columns=12, scale=1)
        print(save_png(sheet, HERE / "anime-64-samples.png"))
        print(save_png(labeled(rows(vae, avatars)), HERE / "what-you-can-make.png"))
        print(save_png(image_grid(vae.sample(16, rng=0), columns=8), HERE / "first-faces.png"))
    run_notebook(TOUR)
    print(TOUR)


if __name__ == "__main__":
    main()
