"""New faces from the prior, and where picked ones go next."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demo.components import FaceGrid
from demo.service import MAX_FACES, MAX_SEED, Service, check_where
from demo.tabs.base import RANDOM_SEED, Page, State, Tab, friendly, headline, number, parse_json, send_buttons, tools
from vae_runtime.config import PRIOR_FILE
from vae_runtime.images import Pixels

COUNT = 24
PRIORS = [("fitted to real faces", "model"), ("standard normal", "unit")]


class SampleTab(Tab):
    """New faces."""

    name, title = "sample", "New faces"

    def build(self) -> None:
        """A grid of faces, and what to do with them."""
        service = self.models.first
        headline("Draw faces that did not exist a second ago")
        choices = service.choices
        with gr.Row(elem_classes="actions"):
            self.new = gr.Button("Draw new faces", variant="primary", elem_id="new-faces")
            where = gr.Dropdown(
                choices,
                value=[],
                multiselect=True,
                allow_custom_value=True,  # those of another model, for the API
                label="Only faces with",
                visible=bool(choices),
                elem_id="sample-where",
            )
        self.grid = FaceGrid(
            "Face",
            value=service.sample(COUNT, service.starters.seed),
            most=4,
            note="No faces yet: press Draw new faces.",
            elem_id="sample-faces",
        )
        self.row = gr.Row(elem_classes="sends")
        with gr.Accordion("Advanced", open=False, elem_id="sample-advanced"), gr.Row():
            faces = gr.Slider(1, MAX_FACES, COUNT, step=1, label="How many", elem_id="sample-count")
            info = "Lower: safer and more alike; higher: wilder"
            temperature = gr.Slider(
                0, 2, 1, step=0.05, label="Variety (temperature)", info=info, elem_id="sample-temperature"
            )
            info = "The same seed draws the same faces"
            seed = gr.Number(
                service.starters.seed,
                precision=0,
                minimum=0,
                maximum=MAX_SEED,
                label="Seed",
                info=info,
                elem_id="sample-seed",
            )
            fitted = PRIOR_FILE in service.vae.config.files
            prior = gr.Radio(PRIORS, value="model", label="Prior", visible=fitted, elem_id="sample-prior")
        self.state = {"faces": faces, "seed": seed, "temperature": temperature, "prior": prior, "where": where}
        self.outputs = [self.grid, *self.state.values()]

    def connect(self, page: Page) -> None:
        """Every change draws again; the buttons below send picked faces on."""
        with self.row:
            gr.HTML("<p>Pick up to four, then</p>", elem_classes="hint")
            send_buttons(self.grid, page)
            tools(self.grid)
        inputs = [page.model, *self.state.values()]
        draw: dict[str, Any] = {"fn": self.sample, "inputs": inputs, "outputs": self.grid, "show_progress": "hidden"}
        seed = self.state["seed"]
        drawn = self.new.click(None, None, seed, js=RANDOM_SEED).then(
            **draw, api_visibility="private", api_name="new_faces"
        )
        self.remember(drawn, page)
        changes = [component.input for component in self.state.values()]
        self.remember(gr.on(changes, **draw, api_name="sample", trigger_mode="always_last"), page)

    def draw(self, service: Service, state: State) -> list[Any]:
        """The faces of a seed, and the controls that say so."""
        faces, seed = number(state, "faces", COUNT), number(state, "seed", service.starters.seed)
        if state.get("switched") and self.models.is_starter_seed(seed):
            seed = service.starters.seed
        temperature, prior = number(state, "temperature", 1.0), state.get("prior", "model")
        choices, where = service.choices, state.get("where") or []
        where = parse_json(where, "where") if isinstance(where, str) else where
        check_where(where)
        if state.get("switched"):
            where = [each for each in where if each in {value for _, value in choices}]
        drawn = service.sample(faces, seed, temperature, prior, where)
        fitted = PRIOR_FILE in service.vae.config.files
        limits = gr.Dropdown(choices=choices, value=where, visible=bool(choices))
        return [drawn, faces, seed, temperature, gr.Radio(value=prior, visible=fitted), limits]

    @friendly
    def sample(
        self,
        model: str,
        faces: int,
        seed: int,
        temperature: float,
        prior: str,
        where: list[str] | None,
    ) -> Pixels:
        """Draw new faces from the prior: the same seed gives the same faces.

        where: attributes they shall have, as ["hair=blue"], for a model with classifiers; [] for any face.
        """
        return self.models[model].sample(faces, seed, temperature, prior, where)
