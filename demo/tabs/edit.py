"""A face moved along directions, and what one face has over another given to a third."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demo.components import FaceGrid, FaceInput, Sliders
from demo.service import MAX_STRENGTH, Service
from demo.tabs.base import PRIVATE, Page, State, Tab, friendly, headline, parse_json, require_picture, tools
from vae_runtime.images import Pixels

EXAMPLE = 2


class EditTab(Tab):
    """Edit."""

    name, title, action = "edit", "Edit", "Edit"

    def build(self) -> None:
        """A face that stays in view, its sliders, and A - B + C."""
        service = self.models.first
        face = service.example_faces[EXAMPLE]
        headline("Move a slider, and watch the face change")
        with gr.Row(elem_id="edit-row"):
            with gr.Column(scale=2, min_width=260, elem_id="edit-faces"):
                note = "Give a face, then move the sliders."
                self.result = FaceGrid(
                    "Edited face", value=service.edit(face, {})[None], note=note, kind="one", elem_id="edit-out"
                )
                with gr.Row(elem_classes="sends"):
                    tools(self.result)
            with gr.Column(scale=3, min_width=260):
                self.sliders = Sliders("Sliders", value=service.board(), limit=MAX_STRENGTH, elem_id="edit-sliders")
                self.picture_in = FaceInput("Face", value=face, elem_id="edit-in")
        with gr.Accordion("Advanced: transfer a look (A - B + C)", open=False):
            gr.HTML("<p>What A has and B has not, given to C.</p>", elem_classes="hint")
            with gr.Row(elem_classes="slots"):
                self.three = [
                    FaceInput(letter, value=picture, elem_id=f"analogy-{letter.lower()}", min_width=130)
                    for letter, picture in zip("ABC", service.analogy_faces, strict=True)
                ]
                with gr.Column(min_width=130):
                    self.run = gr.Button("A - B + C =", variant="primary", elem_id="analogy-run")
                    self.outcome = FaceGrid(
                        "A - B + C", note="Press for the answer.", kind="one", elem_id="analogy-out"
                    )
        self.state = {"face": self.picture_in, "strengths": self.sliders} | dict(zip("abc", self.three, strict=True))
        self.inputs = [self.picture_in]
        self.outputs = [*self.state.values(), self.result, self.outcome]

    def connect(self, page: Page) -> None:
        """Each move of a slider is answered at once, outside the queue."""
        changed = gr.on(
            [self.picture_in.input, self.sliders.input],
            self.edit,
            [page.model, self.picture_in, self.sliders],
            self.result,
            api_name="edit",
            show_progress="hidden",
            trigger_mode="always_last",
            queue=False,
        )
        self.remember(changed, page)
        given = gr.on([slot.input for slot in self.three], self.forget, None, self.outcome, **PRIVATE)
        self.remember(given, page)
        inputs = [page.model, *self.three]
        self.run.click(self.analogy, inputs, self.outcome, api_name="analogy", show_progress="hidden")

    def draw(self, service: Service, state: State) -> list[Any]:
        """The face by this model, with those strengths that it knows."""
        picture = self.picture(service, state, "face", service.example_faces[EXAMPLE])
        asked = state.get("strengths", {})
        if isinstance(asked, str):
            asked = parse_json(asked, "strengths")
        asked = asked if isinstance(asked, dict) else {}
        strengths = service.check_strengths(
            {name: value for name, value in asked.items() if name in service.directions}
        )
        result = None if picture is None else service.edit(picture, strengths)[None]
        three = [self.picture(service, state, letter, service.analogy_faces[i]) for i, letter in enumerate("abc")]
        return [picture, service.board(strengths), *three, result, None]

    @friendly
    def edit(self, model: str, picture: Pixels | None, strengths: dict[str, float]) -> Pixels | None:
        """Move a face along the model's directions, each from -3 to 3 standard deviations of faces: {"smile": 1.5}.

        Directions that are not named stay at 0; with none, the answer is the reconstruction.
        """
        service = self.models[model]
        if picture is None:
            service.check_strengths(strengths)
            return None
        return service.edit(picture, strengths)[None]

    @friendly
    def analogy(self, model: str, a: Pixels | None, b: Pixels | None, c: Pixels | None) -> Pixels:
        """A - B + C in the latent space: what A has over B, given to C."""
        service = self.models[model]
        return service.analogy(require_picture(a, "A"), require_picture(b, "B"), require_picture(c, "C"))[None]

    def forget(self) -> None:
        """The answer to other pictures."""
        return
