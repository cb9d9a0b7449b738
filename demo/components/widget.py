"""What the components share: an HTML component that a script beside the module draws."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import component_meta

from vae_runtime import VAEError

FOLDER = Path(__file__).parent

# Gradio would write a stub file beside each module that defines a component, whenever it is imported.
component_meta.create_or_modify_pyi = lambda *_: None


class Widget(gr.HTML):
    """A component whose script, `<kind>.js`, draws `props.value` into one element.

    Its settings are data attributes of that element: Gradio 6.31 forgets the props of a component that is updated
    before its tab was first opened. Values never go through Gradio's templates, which would evaluate a `${...}` in a
    visitor's text.
    """

    def __init__(self, kind: str, value: Any, label: str, settings: Mapping[str, object], **options: Any) -> None:
        data = "".join(f' data-{name}="{html.escape(str(setting))}"' for name, setting in settings.items())
        super().__init__(
            value=value,
            label=label,
            html_template=f'<div class="{kind}" data-label="{html.escape(label)}"{data}></div>',
            js_on_load=(FOLDER / f"{kind}.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            **options,
        )


def refusal(error: Exception) -> gr.Error:
    """An error of this project as one sentence on the page, without the prefix that names an argument's position."""
    text = str(error.args[-1] if isinstance(error, VAEError) and error.args else error)
    for prefix in ("images[0]: ", "bytes: ", "image: ", "picture: "):
        text = text.removeprefix(prefix)
    return gr.Error(html.escape(text[:1].upper() + text[1:300]), title="Sorry", print_exception=False)
