"""A picture through the encoder and the decoder."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
import numpy as np

from demo.components import Compare, FaceGrid, FaceInput, Selection
from demo.service import MAX_STEPS, Reconstruction, Service
from demo.tabs.base import PRIVATE, Page, State, Tab, friendly, headline, require_picture
from vae_runtime.images import Pixels, psnr

BARS = 48
"""Latents in the chart."""
STEPS = 200


class ReconstructTab(Tab):
    """Your picture."""

    name, title, action = "reconstruct", "Your picture", "Redraw"

    def build(self) -> None:
        """The picture, and what the model makes of it."""
        examples = self.models.first.examples
        pair, text, bars = answer(self.models.first.reconstruct(examples[0]))
        headline("Give a face, and see how the model draws it from memory")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self.picture_in = FaceInput("Your picture", value=examples[0], elem_id="reconstruct-in")
                self.gallery = FaceGrid(
                    "Example", value=examples, most=1, columns=4, kind="few", elem_id="reconstruct-examples"
                )
            with gr.Column(scale=1, min_width=280):
                note = "Give a picture, and the model draws it again."
                self.compare = Compare(
                    "Your picture and its redrawing", value=pair, note=note, elem_id="reconstruct-out"
                )
                self.closer = gr.Button(
                    "Try harder (some seconds)", visible=self.models.first.can_invert, elem_id="invert-run"
                )
                with gr.Row(elem_classes="sends"):
                    self.save = gr.Button("Download", size="sm", elem_id="reconstruct-save", min_width=80)
                with gr.Accordion("Advanced: what the model noted", open=False):
                    self.figures = gr.Markdown(text, elem_id="reconstruct-figures")
                    self.chart = gr.HTML(bars, elem_id="reconstruct-latents")
                    self.steps = gr.Slider(
                        10, MAX_STEPS, STEPS, step=10, label="Steps of Try harder", elem_id="invert-steps"
                    )
        self.state, self.inputs = {"face": self.picture_in}, [self.picture_in]
        self.results = [self.compare, self.figures, self.chart]
        self.outputs = [self.picture_in, *self.results, self.gallery, self.closer]

    def connect(self, page: Page) -> None:
        """A picture is answered at once; a closer answer is asked for."""
        changed = self.picture_in.input(
            self.reconstruct,
            [page.model, self.picture_in],
            self.results,
            api_name="reconstruct",
            show_progress="hidden",
            trigger_mode="always_last",
        )
        self.remember(changed, page)
        chosen = self.gallery.select(
            self.choose, [page.model, self.gallery], [self.picture_in, *self.results], **PRIVATE
        )
        self.remember(chosen, page)
        # Some seconds each: one at a time, so that the other tabs stay quick.
        self.closer.click(
            self.invert,
            [page.model, self.picture_in, self.steps],
            [self.compare, self.figures],
            api_name="invert",
            show_progress_on=self.compare,
            concurrency_id="inverse",
            concurrency_limit=1,
        )
        js = "(pair) => { animeVAE.download(pair?.before ? [pair.before, pair.after] : [], 'redrawn.png', 2); }"
        self.save.click(None, self.compare, js=js)

    def draw(self, service: Service, state: State) -> list[Any]:
        """The picture as it is, redrawn by this model; a model's own examples while the visitor gave none."""
        picture = self.picture(service, state, "face", service.examples[0])
        results = answer(None if picture is None else service.reconstruct(picture))
        return [picture, *results, service.examples, gr.Button(visible=service.can_invert)]

    @friendly
    def reconstruct(self, model: str, picture: Pixels | None) -> tuple[tuple[Pixels, Pixels] | None, str, str]:
        """Encode a picture and decode it again: both pictures, the figures in words, and a chart of the latents."""
        service = self.models[model]
        return answer(None if picture is None else service.reconstruct(picture))

    @friendly
    def choose(self, model: str, selection: Selection) -> list[Any]:
        """An example instead of a picture of the visitor's own."""
        if not selection.faces:
            return [gr.skip()] * 4
        return [selection.faces[0], *answer(self.models[model].reconstruct(selection.faces[0]))]

    @friendly
    def invert(self, model: str, picture: Pixels | None, steps: int) -> tuple[tuple[Pixels, Pixels], str]:
        """Search the code that fits a picture best: the picture, its closest redrawing, and their PSNR."""
        service = self.models[model]
        original, found = service.invert(require_picture(picture), steps)
        first, better = psnr(original, service.vae.reconstruct(original)[0]), psnr(original, found)
        return (original, found), f"**{better:.1f} dB** PSNR after {steps} steps; at once it was {first:.1f} dB."


def answer(found: Reconstruction | None) -> tuple[tuple[Pixels, Pixels] | None, str, str]:
    """Both pictures, the figures, and the chart; empty for no picture."""
    if found is None:
        return None, "", ""
    active = int((found.kl > 0.1).sum())
    text = (
        f"**{found.psnr:.1f} dB** PSNR. The picture became {len(found.mu)} numbers; **{active}** of them say more than "
        f"0.1 nats about it, **{found.kl.sum():.0f} nats** in all."
    )
    return (found.original, found.face), text, latent_chart(found.mu, found.kl)


def latent_chart(mu: np.ndarray[Any, Any], kl: np.ndarray[Any, Any]) -> str:
    """The latents that say most about a picture as bars: their nats, and mu as a tooltip."""
    order = np.argsort(kl)[::-1][:BARS]
    top = max(float(kl[order[0]]), 1e-9)
    bars = "".join(
        f'<span style="height:{max(2.0, 100 * float(kl[i]) / top):.1f}%" '
        f'title="z{i}: mu {mu[i]:+.2f}, {kl[i]:.2f} nats"></span>'
        for i in order
    )
    label = html.escape(f"Nats of the {len(order)} strongest latents, from {top:.2f} to {kl[order[-1]]:.2f}")
    return (
        f'<figure class="latents"><div role="img" aria-label="{label}">{bars}</div><figcaption>The {len(order)} '
        f"strongest of {len(kl)} latents by what each says about this picture; the first says {top:.1f} nats."
        "</figcaption></figure>"
    )
