"""A face to paint on: what the brush covers is hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.components.data_uri import from_uri, mask_from_uri, to_uri
from demo.components.widget import Widget, refusal
from vae_runtime import ImageError
from vae_runtime.images import Pixels


@dataclass(frozen=True)
class Masked:
    """A face, and what of it is hidden."""

    face: Pixels
    """(S, S, 3)"""
    hidden: NDArray[np.bool_]
    """(S, S)"""


class MaskEditor(Widget):
    """A face to paint on. Both the face and the mask travel in the face's own resolution.

    `gr.ImageEditor` would keep each visitor's layers in the memory of the server for as long as it runs. Out: a face
    (S, S, 3), or None for the empty state, which shows `note`. In: `Masked`, or None. In the API: {"src": PNG data URI,
    "mask": PNG data URI, opaque (or white, without an alpha channel) where hidden, or ""}.
    """

    def __init__(self, label: str, *, value: Pixels | None = None, note: str, **options: Any) -> None:
        super().__init__("mask_editor", value, label, {"note": note}, **options)

    def preprocess(self, payload: Any) -> Masked | None:  # type: ignore[override]
        """The face and its mask; gr.Error with a sentence for a face or a mask that cannot be read."""
        if not isinstance(payload, dict) or not payload.get("src"):
            return None
        try:
            face = from_uri(payload["src"])
            mask = payload.get("mask") or ""
            hidden = mask_from_uri(mask) if mask else np.zeros(face.shape[:2], bool)
        except ImageError as error:
            raise refusal(error) from error
        return Masked(face, hidden)

    def postprocess(self, value: Pixels | Masked | None) -> dict[str, str]:  # type: ignore[override]
        """The face as a data URI, and its mask if there is one."""
        if value is None:
            return {}
        if not isinstance(value, Masked):
            return {"src": to_uri(value), "mask": ""}
        mask = value.hidden[..., None].repeat(3, axis=2) * np.uint8(255)
        return {"src": to_uri(value.face), "mask": to_uri(mask) if value.hidden.any() else ""}

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        return {
            "type": "object",
            "properties": {"src": {"type": "string"}, "mask": {"type": "string"}},
            "description": "a face and its mask, opaque or white where it is to be painted anew, as PNG data URIs",
        }

    def example_payload(self) -> Any:
        """For the API page."""
        return {"src": "data:image/png;base64,", "mask": "data:image/png;base64,"}

    example_value = example_payload
