"""A picture from a visitor: a file, a drop, the clipboard or the camera."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr

from demo.components.data_uri import holes_from_uri, picture_from_uri, read_picture, to_uri
from demo.components.mask_editor import Masked
from demo.components.widget import Widget, refusal
from vae_runtime import ImageError
from vae_runtime.images import Pixels


class FaceInput(Widget):
    """A picture from a visitor.

    The script reduces large pictures before they are sent; `gr.Image` would send them whole, and read them without the
    limits of `load_image`. A picture that the browser cannot read (HEIC, TIFF) goes through `reduce` on the server.

    In: RGB uint8 (side, side, 3), at most 512 x 512, or None. Out: a picture (H, W, 3), or None. In the API:
    {"src": data URI}, or an uploaded file as `gradio_client.handle_file` sends it.
    """

    def __init__(self, label: str, *, value: Pixels | None = None, **options: Any) -> None:
        super().__init__("face_input", value, label, {}, server_functions=[reduce], **options)

    def preprocess(self, payload: Any) -> Pixels | None:  # type: ignore[override]
        """The picture, None if there is none; gr.Error with a sentence if it is refused."""
        try:
            return read_payload(payload)
        except ImageError as error:
            raise refusal(error) from error
        except OSError as error:
            raise gr.Error("This picture is no longer here; choose it again.", print_exception=False) from error

    def postprocess(self, value: Pixels | None) -> dict[str, str]:  # type: ignore[override]
        """The picture as a data URI."""
        return {} if value is None else {"src": to_uri(value)}

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        return {
            "type": "object",
            "properties": {"src": {"type": "string"}},
            "description": "a picture: an uploaded file (handle_file), or {'src': data URI}",
        }

    def example_payload(self) -> Any:
        """For the API page."""
        return {"src": "data:image/png;base64,"}

    example_value = example_payload


class MaskedFaceInput(FaceInput):
    """As `FaceInput`; what is transparent in the picture is hidden. Out: `Masked`, or None."""

    def preprocess(self, payload: Any) -> Masked | None:  # type: ignore[override]
        """The picture and its holes, None if there is none; gr.Error with a sentence if it is refused."""
        picture = super().preprocess(payload)
        if picture is None:
            return None
        side = len(picture)
        return Masked(picture, holes_from_uri(payload.get("src"), side))


def read_payload(payload: Any) -> Pixels | None:
    """What a client sent as a picture. Raises ImageError, and OSError for an upload that is gone."""
    if payload is None or payload == {}:
        return None
    if not isinstance(payload, dict):
        raise ImageError("picture: expected an uploaded file or {'src': data URI}")
    # Gradio has checked a path only if it is marked as one of an uploaded file.
    if payload.get("meta") == {"_type": "gradio.FileData"} and isinstance(payload.get("path"), str):
        return read_picture(Path(payload["path"]))
    return picture_from_uri(payload["src"]) if payload.get("src") else None


def reduce(payload: Any = None, *_: Any) -> dict[str, str]:
    """A picture that the browser cannot read as a small PNG: {"src": data URI}, or {"error": a sentence}."""
    try:
        return {"src": to_uri(picture_from_uri(payload))}
    except ImageError as error:
        sentence = re.sub(r"^(bytes|picture): ", "", str(error.args[-1]))
        return {"error": sentence[:1].upper() + sentence[1:300]}
