"""An animation that plays on the page, and its file."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from demo.components.widget import Widget

MIME = {"webm": "video/webm", "gif": "image/gif", "webp": "image/webp"}


@dataclass(frozen=True)
class Animation:
    """The bytes of an animation, with its length."""

    name: str
    """loop.webm, loop.gif or loop.webp"""
    data: bytes
    frames: int
    fps: float


class AnimationView(Widget):
    """Plays an `Animation` and links to its file. Out: an `Animation`, or None for the empty state: `note`."""

    def __init__(self, label: str, *, note: str, **options: Any) -> None:
        super().__init__("animation", None, label, {"note": note}, **options)

    def postprocess(self, value: Animation | None) -> dict[str, Any]:  # type: ignore[override]
        """The file as a data URI: nothing is kept on the server."""
        if value is None:
            return {}
        mime = MIME[value.name.rpartition(".")[2]]
        return {
            "src": f"data:{mime};base64,{base64.b64encode(value.data).decode()}",
            "name": value.name,
            "frames": value.frames,
            "seconds": value.frames / value.fps,
        }

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        texts = {key: {"type": "string"} for key in ("src", "name")}
        numbers = {key: {"type": "number"} for key in ("frames", "seconds")}
        return {"type": "object", "properties": texts | numbers, "description": "src: the file, as a data URI"}
