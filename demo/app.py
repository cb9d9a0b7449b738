"""The page: a loop over the tabs, the choice of the model, and the links that bring a page back.

    python -m demo        # http://127.0.0.1:7860

Visitors share nothing: what a tab needs travels with its request, and a face is a seed, a lineage or a picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from demo.components import FaceGrid, FaceInput
from demo.components.face_input import read_payload
from demo.service import Service
from demo.tabs import TABS, Models, Page, Tab
from demo.tabs.base import PRIVATE, friendly, send_buttons
from vae_runtime import VAE

TITLE = "anime-vae"
IDEA = "Draw, blend, edit and breed faces: each one is a short list of numbers."
QUEUE = 32
"""Requests that wait; one more is told that the page is busy."""
MAX_STATE = 12_000_000
"""Characters of a page's state: a few pictures."""


def build_demo(models: VAE | Sequence[VAE]) -> gr.Blocks:
    """The page over one model or several, the first of which it opens with. InputError for two of one name."""
    found = Models([Service(vae) for vae in ([models] if isinstance(models, VAE) else models)])
    # Gradio counts visitors and, after every event, tabulates all earlier ones: neither is wanted here.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")
    tabs = [kind(found) for kind in TABS]
    demo = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600))
    with demo:
        with gr.Row(elem_id="head"):
            gr.HTML(f"<h1>{TITLE}</h1><p>{IDEA}</p>", elem_id="title")
            model = gr.Dropdown(
                found.names, value=found.names[0], label="Model", elem_id="model", min_width=150, scale=0
            )
            share = gr.Button("Copy link", elem_id="share", min_width=110, scale=0)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as holder:
            for tab in tabs:
                with gr.Tab(tab.title, id=tab.name, elem_id=f"tab-{tab.name}") as panel:
                    tab.build()
                panel.select(None, None, None, js=f"() => animeVAE.select('{tab.name}')")
        page = Page(model, holder, tabs)
        _favorites(page)
        for tab in tabs:
            tab.connect(page)
        _wire_model(page, found, tabs)
        _wire_state(demo, page, found, tabs, share)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    demo.queue(max_size=QUEUE, default_concurrency_limit=cores)
    return demo


def _favorites(page: Page) -> None:
    """The faces that this browser keeps, below all tabs."""
    with gr.Accordion("♥ Favorites", open=False, elem_id="favorites-box"):
        note = "Faces that you keep are stored in this browser, and nowhere else."
        grid = FaceGrid("Favorite", most=4, note=note, elem_id="favorites", columns=0, kind="small")
        with gr.Row(elem_classes="sends"):
            send_buttons(grid, page)
            save = gr.Button("Download", size="sm", elem_id="favorites-save", min_width=80)
            drop = gr.Button("Remove", size="sm", elem_id="favorites-drop", min_width=80)
    save.click(None, grid, js="(faces) => { animeVAE.download(animeVAE.chosen(faces), 'favorites.png'); }")
    drop.click(None, grid, js="(faces) => animeVAE.drop(animeVAE.picked(faces))")


def _wire_model(page: Page, models: Models, tabs: Sequence[Tab]) -> None:
    """Another model: every tab is drawn anew from its own state."""

    @friendly
    def change(model: str, *values: Any) -> list[Any]:
        service, rest, drawn = models[model], list(values), []
        for tab in tabs:
            state = {name: rest.pop(0) for name in tab.state}
            drawn += tab.draw_or_default(service, {**state, "switched": True})
        return drawn

    inputs = [page.model, *(component for tab in tabs for component in tab.state.values())]
    outputs = [component for tab in tabs for component in tab.outputs]
    changed = page.model.input(change, inputs, outputs, **PRIVATE)
    changed.then(None, page.model, js="(model) => animeVAE.switchModel(model)")


def _wire_state(demo: gr.Blocks, page: Page, models: Models, tabs: Sequence[Tab], share: gr.Button) -> None:
    """A page that is opened by a link, reloaded, or gone back to shows what its state says.

    What a state says wrongly is left at its default.
    """
    by_name = {tab.name: tab for tab in tabs}
    outputs = [page.tabs, page.model, *(component for tab in tabs for component in tab.outputs)]

    @friendly
    def restore(text: str) -> list[Any]:
        model, chosen, states = _parse(text, models, by_name)
        service, drawn = models[model], []
        for tab in tabs:
            if tab.name in states or model != models.names[0] or chosen != tabs[0].name:
                drawn += tab.draw_or_default(service, states.get(tab.name, {}))
            else:
                drawn += [gr.skip() for _ in tab.outputs]
        return [gr.Tabs(selected=chosen), model, *drawn]

    @friendly
    def link(text: str) -> str:
        model, chosen, states = _parse(text, models, by_name)
        tab, query = by_name[chosen], {"model": model, "tab": chosen}
        for name, value in states.get(chosen, {}).items():
            if name in tab.state and value not in (None, "", {}, []):
                query[name] = _as_text(models[model], tab.state[name], value)
        return urlencode(query)

    text = gr.Textbox(visible=False)
    again = gr.Button("Restore", elem_id="restore", visible="hidden")
    read = "() => animeVAE.read()"
    start = f"() => {{ animeVAE.start('{tabs[0].name}'); return animeVAE.read(); }}"
    demo.load(restore, text, outputs, js=start, **PRIVATE).then(None, None, None, js="() => animeVAE.restored()")
    again.click(restore, text, outputs, js=read, **PRIVATE)
    asked = share.click(link, text, text, js=read, **PRIVATE)
    asked.then(None, text, None, js="(query) => { animeVAE.copyLink(query); }")


def _parse(text: str, models: Models, tabs: dict[str, Tab]) -> tuple[str, str, dict[str, dict[str, Any]]]:
    """(model, tab, state by tab) of what the page's script sends; defaults for what is not valid."""
    try:
        found = json.loads(text) if isinstance(text, str) and len(text) < MAX_STATE else {}
    except (ValueError, RecursionError):
        found = {}
    found = found if isinstance(found, dict) else {}
    model, chosen, states = found.get("model"), found.get("tab"), found.get("tabs")
    states = states if isinstance(states, dict) else {}
    return (
        model if isinstance(model, str) and model in models.names else models.names[0],
        chosen if isinstance(chosen, str) and chosen in tabs else next(iter(tabs)),
        {name: state for name, state in states.items() if name in tabs and isinstance(state, dict)},
    )


def _as_text(service: Service, component: Any, value: Any) -> str:
    """A value of a tab's state as a link holds it: a picture becomes its code."""
    if isinstance(component, FaceInput):
        picture = value if isinstance(value, str) else read_payload(value)
        return picture if isinstance(picture, str) else "" if picture is None else service.token(picture)
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
