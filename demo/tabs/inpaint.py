"""A part of a face painted anew."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demo.components import FaceGrid, Masked, MaskedFaceInput, MaskEditor
from demo.service import MAX_STEPS, Service, check_int
from demo.tabs.base import PRIVATE, Page, State, Tab, friendly, headline, number, require_picture, tools
from vae_runtime.images import Pixels

EXAMPLE = 0
STEPS = 150


class InpaintTab(Tab):
    """Repaint."""

    name, title, action = "inpaint", "Repaint", "Repaint"

    def build(self) -> None:
        """A face to paint on, and the answer."""
        service = self.models.first
        face, able = service.example_faces[EXAMPLE], service.can_invert
        headline("Paint over a part, and the model draws it anew")
        self.sorry = gr.Markdown(sorry(service), visible=not able, elem_id="inpaint-sorry")
        with gr.Column(visible=able, elem_id="inpaint-row") as self.row:
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    note = "Give a face, then paint over a part of it."
                    self.editor = MaskEditor("Paint here", value=face, note=note, elem_id="inpaint-paint")
                    self.run = gr.Button("Draw it anew", variant="primary", elem_id="inpaint-run")
                with gr.Column(scale=1, min_width=280):
                    note = "Paint over the eyes or the mouth, then press Draw it anew."
                    self.outcome = FaceGrid("Repainted face", note=note, kind="one", elem_id="inpaint-out")
                    with gr.Row(elem_classes="sends"):
                        tools(self.outcome)
                    self.picture_in = MaskedFaceInput("Another face", value=face, elem_id="inpaint-in")
            with gr.Accordion("Advanced", open=False):
                info = "More: closer, and slower"
                steps = gr.Slider(10, MAX_STEPS, STEPS, step=10, label="Steps", info=info, elem_id="inpaint-steps")
        self.state = {"face": self.picture_in, "steps": steps}
        self.inputs = [self.picture_in]
        self.outputs = [self.sorry, self.row, *self.state.values(), self.editor, self.outcome]

    def connect(self, page: Page) -> None:
        """What is transparent in a new face is its mask; the search takes some seconds, so one runs at a time."""
        changed = self.picture_in.input(
            self.prepare,
            [page.model, self.picture_in],
            [self.editor, self.outcome],
            trigger_mode="always_last",
            **PRIVATE,
        )
        self.remember(changed, page)
        steps = self.state["steps"]
        self.remember(steps.release(None, None, None), page)
        self.run.click(
            self.inpaint,
            [page.model, self.editor, steps],
            self.outcome,
            api_name="inpaint",
            concurrency_id="inverse",
            concurrency_limit=1,
        )

    def draw(self, service: Service, state: State) -> list[Any]:
        """The face as this model sees it, nothing painted over."""
        picture, able = self.picture(service, state, "face", service.example_faces[EXAMPLE]), service.can_invert
        steps = check_int(number(state, "steps", STEPS), "steps", 1, MAX_STEPS)
        shown = None if picture is None else service.vae.prepare(picture)[0]
        return [gr.Markdown(sorry(service), visible=not able), gr.Column(visible=able), picture, steps, shown, None]

    @friendly
    def prepare(self, model: str, given: Masked | None) -> tuple[Masked | None, None]:
        """The picture as the model sees it, its transparent parts painted over, and no answer yet."""
        return None if given is None else self.models[model].fit(given), None

    @friendly
    def inpaint(self, model: str, painting: Masked | None, steps: int) -> Pixels:
        """Draw anew what the mask hides, in `steps` steps of a search; the pixels around it stay as they are."""
        require_picture(None if painting is None else painting.face)
        assert painting is not None
        return self.models[model].inpaint(painting.face, painting.hidden, steps)[None]


def sorry(service: Service) -> str:
    """What the tab says for a model that cannot do it."""
    return f"The model `{service.name}` comes without `inverse.onnx`, which this needs; choose another model above."
