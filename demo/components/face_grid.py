"""Faces in a grid, to look at or to pick from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from demo.components.data_uri import from_uri, to_uri
from demo.components.widget import Widget, refusal
from vae_runtime import ImageError
from vae_runtime.images import Pixels

MAX_FACES_SENT = 256
MAX_SELECTED = 16


@dataclass(frozen=True)
class Selection:
    """The faces of a grid that are picked, and their places in it."""

    places: tuple[int, ...]
    faces: list[Pixels]


class FaceGrid(Widget):
    """Faces in a grid; with `most` > 0 a click picks one, and at most that many.

    Out: uint8 (n, S, S, 3), or None for the empty state, which shows `note`. In: `Selection`. In the API:
    [{"src": PNG data URI, "picked": boolean}, ...].
    """

    def __init__(
        self,
        label: str,
        *,
        value: Pixels | None = None,
        most: int = 0,
        columns: int = 0,
        note: str = "",
        kind: str = "many",
        **options: Any,
    ) -> None:
        settings = {"most": most, "columns": columns, "note": note, "kind": kind}
        super().__init__("face_grid", value, label, settings, **options)

    def preprocess(self, payload: Any) -> Selection:  # type: ignore[override]  # Gradio types its value as str
        """The picked faces and their places; gr.Error for a face that is no small PNG."""
        if not isinstance(payload, list) or len(payload) > MAX_FACES_SENT:
            return Selection((), [])
        picked = [
            (place, face) for place, face in enumerate(payload) if isinstance(face, dict) and face.get("picked") is True
        ][:MAX_SELECTED]
        try:
            return Selection(tuple(place for place, _ in picked), [from_uri(face.get("src")) for _, face in picked])
        except ImageError as error:
            raise refusal(error) from error

    def postprocess(self, value: Pixels | None) -> list[dict[str, Any]]:  # type: ignore[override]
        """The faces as data URIs, none of them picked."""
        return [] if value is None else [{"src": to_uri(face), "picked": False} for face in value]

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        face = {"type": "object", "properties": {"src": {"type": "string"}, "picked": {"type": "boolean"}}}
        return {"type": "array", "items": face, "description": "faces as PNG data URIs, in the model's own pixels"}

    def example_payload(self) -> Any:
        """For the API page."""
        return []

    example_value = example_payload
