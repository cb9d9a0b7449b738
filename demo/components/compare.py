"""Two pictures of one size, and a slider between them."""

from __future__ import annotations

from typing import Any

from demo.components.data_uri import to_uri
from demo.components.widget import Widget
from vae_runtime.images import Pixels


class Compare(Widget):
    """A slider between two pictures. Out: (before, after), or None for the empty state, which shows `note`."""

    def __init__(self, label: str, *, value: tuple[Pixels, Pixels] | None = None, note: str, **options: Any) -> None:
        super().__init__("compare", value, label, {"note": note}, **options)

    def postprocess(self, value: tuple[Pixels, Pixels] | None) -> dict[str, str]:  # type: ignore[override]
        """Both as data URIs."""
        return {} if value is None else {"before": to_uri(value[0]), "after": to_uri(value[1])}

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        return {
            "type": "object",
            "properties": {"before": {"type": "string"}, "after": {"type": "string"}},
            "description": "the picture as the model sees it and its reconstruction, as PNG data URIs",
        }
