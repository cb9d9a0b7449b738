"""An HTTP server: new faces, and reconstructions of uploaded pictures, as PNG.

    pip install -e ".[cpu]" fastapi uvicorn python-multipart
    uvicorn --app-dir examples server:app
    curl "http://127.0.0.1:8000/sample?count=16&seed=3" -o faces.png
    curl -F files=@me.png -F files=@you.png http://127.0.0.1:8000/reconstruct -o reconstructions.png

One VAE serves all threads; with one thread a call many callers get more done than with all cores for each. What
strangers upload is checked before it is decoded. An answer names a picture by its number, never by a file name.
"""

from __future__ import annotations

import io
import os
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Response, UploadFile
from PIL import Image

from vae_runtime import VAE, ImageError, image_grid, load_image
from vae_runtime.images import MAX_BYTES, Pixels

MOST = 16
"""Pictures of one request."""

vae = VAE.load(os.environ.get("MODEL"), device="cpu", threads=1)
vae.warmup(1)
app = FastAPI()


def as_png(faces: Pixels) -> Response:
    """Faces (n, S, S, 3) as one sheet."""
    file = io.BytesIO()
    Image.fromarray(image_grid(faces)).save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")


@app.get("/sample")
def sample(count: Annotated[int, Query(ge=1, le=64)] = 1, seed: Annotated[int, Query(ge=0)] = 0) -> Response:
    """New faces; the same for the same seed."""
    return as_png(vae.sample(count, rng=seed, temperature=0.8))


@app.post("/reconstruct")
def reconstruct(
    files: list[UploadFile],
) -> Response:  # not async: runs in a thread, so that others are served meanwhile
    """The faces that the model makes of the uploaded pictures, in their order; 422 with a sentence for each bad one."""
    if len(files) > MOST:
        raise HTTPException(413, f"{len(files)} pictures, expected at most {MOST}")
    pictures, problems = [], []
    for number, upload in enumerate(files, 1):
        try:
            pictures.append(load_image(upload.file.read(MAX_BYTES + 1)))
        except ImageError as error:
            problems.append(f"picture {number}: {str(error).removeprefix('image: ')}")
    if problems:
        raise HTTPException(422, problems)
    return as_png(vae.reconstruct(pictures))
