"""Faces between two to four faces, and a loop through them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from demo.components import Animation, AnimationView, FaceGrid, FaceInput
from demo.service import FPS, SIDE, Service, check_int, check_method, enlarged
from demo.tabs.base import Page, State, Tab, drop_none, friendly, headline, number, tools
from vae_runtime import InputError, save_animation
from vae_runtime.images import Pixels

STEPS = 8
FORMATS = ("webm", "gif", "webp")
LOOP_SIDE = 256
"""Pixels of a loop's frame."""
METHODS = [("along the sphere (slerp)", "slerp"), ("straight (lerp)", "lerp")]


class InterpolateTab(Tab):
    """Blend."""

    name, title, action = "interpolate", "Blend", "Blend"

    def build(self) -> None:
        """Four slots, the way through them, the square between them, and a loop."""
        service = self.models.first
        start = service.starter_faces[:4]
        headline("Turn one face into another")
        with gr.Row(elem_classes="slots"):
            self.inputs = [
                FaceInput(f"Face {i + 1}", value=start[i], elem_id=f"interpolate-{i + 1}", min_width=130)
                for i in range(4)
            ]
        with gr.Row(elem_classes="actions"):
            self.make = gr.Button("Make it move", variant="primary", elem_id="make-loop")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                note = "With four faces, everything between them appears here."
                self.square = FaceGrid(
                    "Blend",
                    value=service.square(start),
                    columns=SIDE,
                    note=note,
                    kind="square",
                    elem_id="interpolate-square",
                )
            with gr.Column(scale=1, min_width=280):
                note = "Press Make it move: a loop through your faces plays here, and can be downloaded."
                self.animation = AnimationView("Loop", note=note, elem_id="loop")
        note = "Two to four faces are needed: send them here from New faces, or choose your own."
        self.strip = FaceGrid(
            "Step", value=service.blend(start), columns=STEPS, note=note, kind="strip", elem_id="interpolate-strip"
        )
        with gr.Row(elem_classes="sends"):
            tools(self.strip, STEPS)
        with gr.Accordion("Advanced", open=False), gr.Row():
            method = gr.Radio(METHODS, value="slerp", label="Path", elem_id="interpolate-method")
            self.kind = gr.Radio(list(FORMATS), value="webm", label="Format of the loop", elem_id="loop-format")
            steps = gr.Slider(2, 16, STEPS, step=1, label="Faces from one to the next", elem_id="interpolate-steps")
        self.state = {f"face{i + 1}": slot for i, slot in enumerate(self.inputs)} | {"method": method, "steps": steps}
        self.outputs = [*self.state.values(), self.strip, self.square, self.animation]

    def connect(self, page: Page) -> None:
        """A change of a face or a setting blends again; a loop is made on demand."""
        inputs = [page.model, *self.state.values()]
        changed = gr.on(
            [component.input for component in self.state.values()],
            self.interpolate,
            inputs,
            [self.strip, self.square],
            api_name="interpolate",
            show_progress="hidden",
            trigger_mode="always_last",
        )
        self.remember(changed, page)
        self.make.click(
            self.loop, [page.model, *self.inputs, self.state["method"], self.kind], self.animation, api_name="loop"
        )

    def draw(self, service: Service, state: State) -> list[Any]:
        """The same slots, blended by this model; a loop of another model goes."""
        slots = [self.picture(service, state, f"face{i + 1}", i) for i in range(4)]
        method, steps = (
            check_method(state.get("method", "slerp")),
            check_int(number(state, "steps", STEPS), "steps", 2, 16),
        )
        return [*slots, method, steps, *blend(service, slots, method, steps), None]

    @friendly
    def interpolate(
        self,
        model: str,
        first: Pixels | None,
        second: Pixels | None,
        third: Pixels | None,
        fourth: Pixels | None,
        method: str,
        steps: int,
    ) -> tuple[Pixels | None, Pixels | None]:
        """The faces between two to four pictures, on the way through all; and for four the square between them."""
        return blend(self.models[model], [first, second, third, fourth], method, steps)

    @friendly
    def loop(
        self,
        model: str,
        first: Pixels | None,
        second: Pixels | None,
        third: Pixels | None,
        fourth: Pixels | None,
        method: str,
        kind: str,
    ) -> Animation:
        """A walk through two to four pictures and back, as WebM, GIF or WebP: the file as a data URI."""
        if kind not in FORMATS:
            raise InputError(f"kind: expected one of {', '.join(FORMATS)}")
        frames = self.models[model].loop(drop_none(first, second, third, fourth), method)
        with tempfile.TemporaryDirectory(prefix="anime-vae-") as folder:
            file = Path(folder, f"anime-vae-loop.{kind}")
            save_animation(enlarged(frames, max(LOOP_SIDE, frames.shape[1])), file, FPS)
            return Animation(file.name, file.read_bytes(), len(frames), FPS)


def blend(
    service: Service, slots: list[Pixels | None], method: object, steps: object
) -> tuple[Pixels | None, Pixels | None]:
    """The way through the slots and the square between them; None for fewer than two pictures."""
    pictures = drop_none(*slots)
    checked = check_method(method), check_int(steps, "steps", 2, 16)
    if len(pictures) < 2:
        return None, None
    return service.blend(pictures, checked[1], checked[0]), service.square(pictures, checked[0])
