"""Faces bred by eye."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demo.components import FaceGrid, Selection
from demo.evolution import SIZE, Lineage
from demo.service import MAX_SEED, Service, check_int
from demo.tabs.base import PRIVATE, RANDOM_SEED, Page, State, Tab, friendly, headline, send_buttons, tools
from vae_runtime.images import Pixels

MUTATION = 35


class EvolveTab(Tab):
    """Evolve."""

    name, title = "evolve", "Evolve"

    def build(self) -> None:
        """A generation of sixteen, and the next."""
        service = self.models.first
        line = Lineage(service.starters.line)
        headline("Pick the faces you like, and breed their children")
        with gr.Row(elem_classes="actions"):
            self.breed_run = gr.Button("Breed", variant="primary", elem_id="evolve-next")
            self.fresh_run = gr.Button("Start again", elem_id="evolve-fresh")
        self.heading = gr.Markdown(generation(line), elem_id="evolve-heading")
        self.grid = FaceGrid("Face", value=service.evolve(line), most=SIZE, kind="sixteen", elem_id="evolve-faces")
        self.row = gr.Row(elem_classes="sends")
        with gr.Accordion("Advanced", open=False), gr.Row():
            info = "0: only mixtures of the parents; more: surprises"
            self.mutation = gr.Slider(
                0, 100, MUTATION, step=5, label="Mutation, %", info=info, elem_id="evolve-mutation"
            )
            info = "Seed and choices; the same text, the same faces"
            self.lineage = gr.Textbox(str(line), label="Lineage", info=info, elem_id="evolve-lineage", max_length=8000)
        self.seed = gr.Number(line.seed, precision=0, visible=False)
        self.state = {"lineage": self.lineage}
        self.outputs = [self.grid, self.lineage, self.heading]

    def connect(self, page: Page) -> None:
        """Breeding, a new line, and a line by its text."""
        with self.row:
            gr.HTML("<p>Or take up to four to</p>", elem_classes="hint")
            send_buttons(self.grid, page)
            tools(self.grid)
        inputs = [page.model, self.grid, self.lineage, self.mutation]
        self.remember(self.breed_run.click(self.breed, inputs, self.outputs, **PRIVATE), page)
        fresh = self.fresh_run.click(None, None, self.seed, js=RANDOM_SEED).then(
            self.fresh, [page.model, self.seed], self.outputs, **PRIVATE
        )
        self.remember(fresh, page)
        asked = self.lineage.submit(
            self.evolve, [page.model, self.lineage], self.grid, api_name="evolve", show_progress="hidden"
        )
        self.remember(asked, page)

    def draw(self, service: Service, state: State) -> list[Any]:
        """The youngest generation of a lineage."""
        line = Lineage.parse(state.get("lineage", str(service.starters.line)))
        if state.get("switched") and not line.steps and self.models.is_starter_seed(line.seed):
            line = Lineage(service.starters.line)
        return bred(service, line)

    @friendly
    def evolve(self, model: str, lineage: str) -> Pixels:
        """The sixteen faces of the youngest generation of a lineage such as 7-3.5x40: seed 7, parents 3 and 5, 40 %."""
        return self.models[model].evolve(Lineage.parse(lineage))

    @friendly
    def breed(self, model: str, selection: Selection, lineage: str, mutation: int) -> list[Any]:
        """The next generation: the faces, the lineage that leads to them, and its heading."""
        line = Lineage.parse(lineage).child(selection.places, check_int(mutation, "mutation", 0, 100))
        return bred(self.models[model], line)

    @friendly
    def fresh(self, model: str, seed: int) -> list[Any]:
        """A new line, from its seed."""
        return bred(self.models[model], Lineage(check_int(seed, "seed", 0, MAX_SEED)))


def bred(service: Service, line: Lineage) -> list[Any]:
    """The faces of a line, its text, and its heading."""
    return [service.evolve(line), str(line), generation(line)]


def generation(line: Lineage) -> str:
    """The heading of a generation."""
    return f"### Generation {len(line.steps) + 1}"
