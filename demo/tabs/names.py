"""A face for every name."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demo.components import FaceGrid
from demo.service import Service
from demo.tabs.base import Page, State, Tab, friendly, headline, tools
from vae_runtime.images import Pixels

NAME = "Emi"


class NamesTab(Tab):
    """By name."""

    name, title = "names", "By name"

    def build(self) -> None:
        """A name, and its face."""
        headline("Type a name, and meet its face")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self.text = gr.Textbox(
                    NAME, label="Name, or any other text", max_length=200, elem_id="names-text", autofocus=False
                )
                note = "The same name has the same face everywhere: here, in Python and in the page without a server."
                gr.HTML(f"<p>{note} Upper and lower case make no difference.</p>", elem_classes="hint")
            with gr.Column(scale=1, min_width=280):
                self.grid = FaceGrid(
                    "Face of this name",
                    value=self.models.first.faces_of(NAME),
                    note="Type a name.",
                    kind="one",
                    elem_id="names-out",
                )
                with gr.Row(elem_classes="sends"):
                    tools(self.grid)
        self.state = {"text": self.text}
        self.outputs = [self.text, self.grid]

    def connect(self, page: Page) -> None:
        """Each letter is answered at once."""
        # Not `input`, which Gradio 6.31 swallows once after it has set the text itself.
        typed = self.text.change(
            self.face_of,
            [page.model, self.text],
            self.grid,
            api_name="face_of",
            show_progress="hidden",
            trigger_mode="always_last",
            queue=False,
        )
        self.remember(typed, page)

    def draw(self, service: Service, state: State) -> list[Any]:
        """The face of the text by this model."""
        text = str(state.get("text", NAME))[:200]
        return [text, service.faces_of(text)]

    @friendly
    def face_of(self, model: str, text: str) -> Pixels | None:
        """The face of a name or any other text: always the same for the same text, whatever its case."""
        return self.models[model].faces_of(text)
