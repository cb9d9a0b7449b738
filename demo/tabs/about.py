"""The model and what runs it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gradio as gr

from demo.service import Service
from demo.tabs.base import Page, State, Tab
from vae_runtime import __version__
from vae_runtime.config import PRIOR_FILE

ABBREVIATIONS = {"elbo", "fd", "kid", "kl", "psnr", "ssim", "swd"}


class AboutTab(Tab):
    """About."""

    name, title = "about", "About"

    def build(self) -> None:
        """A page of text."""
        self.card = gr.Markdown(about(self.models.first), elem_id="card")
        with gr.Accordion("Advanced: how it was made, and its figures", open=False):
            self.figures = gr.Markdown(figures(self.models.first), elem_id="figures")
        self.outputs = [self.card, self.figures]

    def connect(self, page: Page) -> None:
        """Nothing to wire."""

    def draw(self, service: Service, state: State) -> list[Any]:
        """The card of this model."""
        return [about(service), figures(service)]


def about(service: Service) -> str:
    """The model's card and what runs it, as Markdown."""
    vae, config = service.vae, service.vae.config
    rows = {
        "Name": config.name,
        "Pictures": f"{vae.image_size} x {vae.image_size} pixels, enlarged here",
        "A face is": f"{vae.latent_dim} numbers",
        "Learned from": f"{config.training_data.count:,} faces",
    }
    return f"""## How it works

A variational autoencoder is two small networks. The encoder turns a face into a short list of numbers, its code; the
decoder draws a face from any code. Similar faces have codes that are close, so what lies between two codes is a face,
too.

## Limits

The model knows faces like those it was trained on, cropped and centered as they were; anything else comes back as such
a face. Fine detail is soft. It is made for pictures, not for recognizing or judging people. Pictures that you give are
used for your answer and are not kept. Favorites stay in your browser.

## The model

{_table(rows)}
"""


def figures(service: Service) -> str:
    """How the model was made, what runs it, and the metrics of the export, as a table in Markdown."""
    vae, config = service.vae, service.vae.config
    tuned = "" if vae.prior.code_mean is None else ", then tuned with the decoder"
    fitted = f", fitted to the codes of those faces{tuned}" if PRIOR_FILE in config.files else ""
    rows = {
        "Model": f"preset `{config.preset}`, id `{config.model_id}`",
        "Trained on": f"`{config.training_data.name}`",
        "Where new faces come from": vae.prior.kind + fitted,
        "Directions": ", ".join(service.directions),
        "Runs on": f"{vae.device}, ONNX Runtime {_onnxruntime()}",
        "Versions": f"anime-vae {__version__}, gradio {version('gradio')}, Python {sys.version.split()[0]}",
    }
    for name, value in config.metrics.items():
        words = [word.upper() if word in ABBREVIATIONS else word for word in name.split("_")]
        rows[" ".join(words)] = f"{value:g}"
    return _table(rows)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _onnxruntime() -> str:
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "for CUDA"
