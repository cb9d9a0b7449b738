"""Sliders of a model's directions, grouped, with undo and reset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo.components.widget import Widget

MAX_STRENGTHS = 256


@dataclass(frozen=True)
class SliderGroup:
    """Sliders under one heading; `folded` ones are shown on demand."""

    title: str
    names: tuple[tuple[str, str], ...]
    """(name of the direction, label)"""
    folded: bool = False


@dataclass(frozen=True)
class SliderBoard:
    """The groups of a model, and where its sliders stand."""

    groups: Sequence[SliderGroup]
    strengths: Mapping[str, float]


class Sliders(Widget):
    """A slider for each direction. Out: a `SliderBoard`. In: strengths by name, {"smile": 1.5}, as in the API."""

    def __init__(self, label: str, *, value: SliderBoard | None = None, limit: float, **options: Any) -> None:
        super().__init__("sliders", value, label, {"limit": limit}, **options)

    def preprocess(self, payload: Any) -> dict[str, Any]:  # type: ignore[override]
        """The strengths by name, unchecked but for their number."""
        found = payload.get("strengths", payload) if isinstance(payload, dict) else payload
        return dict(list(found.items())[:MAX_STRENGTHS]) if isinstance(found, dict) else {"": found}

    def postprocess(self, value: SliderBoard | None) -> dict[str, Any]:  # type: ignore[override]
        """What the script draws."""
        if value is None:
            return {}
        groups = [
            {
                "title": group.title,
                "folded": group.folded,
                "sliders": [{"name": name, "label": label} for name, label in group.names],
            }
            for group in value.groups
        ]
        return {"groups": groups, "strengths": dict(value.strengths)}

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        return {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": 'strengths by the name of a direction, {"smile": 1.5}, each from -3 to 3',
        }

    def example_payload(self) -> Any:
        """For the API page."""
        return {}

    example_value = example_payload
