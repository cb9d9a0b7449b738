"""What a tab is: its components, the state that a link or a reload brings back, and how it is drawn from that state."""

from __future__ import annotations

import functools
import html
import json
import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import gradio as gr
import numpy as np

from demo.components import FaceGrid, FaceInput, Masked, Selection
from demo.components.face_input import read_payload
from demo.components.widget import refusal
from demo.service import Service
from vae_runtime import InputError, VAEError
from vae_runtime.images import Pixels

log = logging.getLogger("demo")
Function = TypeVar("Function", bound=Callable[..., Any])
State = Mapping[str, Any]
"""Values of a tab by the names in `Tab.state`, unchecked; of a link all are texts.

"sent": the faces were picked by the visitor. "switched": the model has just changed.
"""

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
RANDOM_SEED = "() => Math.floor(Math.random() * 1e6)"
EXPECTED = (VAEError, gr.Error)


def friendly(function: Function) -> Function:
    """Errors of this project become a sentence on the page; others an identifier that the log has, too, and no more."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except gr.Error:
            raise
        except VAEError as error:
            raise refusal(error) from error
        except Exception as error:
            name = uuid.uuid4().hex[:8]
            log.exception("error %s", name)
            raise gr.Error(f"Something went wrong here (error {name} in the log).", print_exception=False) from error

    return guarded  # type: ignore[return-value]  # the same signature


class Models:
    """The services of all models, by name."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = {service.name: service for service in services}
        if not services or len(self._services) < len(services):
            raise InputError("models: expected one or more, each with a name of its own")

    @property
    def names(self) -> list[str]:
        """The names, that of the model that the page opens with first."""
        return list(self._services)

    @property
    def first(self) -> Service:
        """The service that the page opens with."""
        return next(iter(self._services.values()))

    def __getitem__(self, model: object) -> Service:
        if not isinstance(model, str) or model not in self._services:
            raise InputError(f"model: expected one of {', '.join(self._services)}")
        return self._services[model]

    def is_starter(self, picture: Pixels) -> bool:
        """Whether some model's tabs open with this picture, or show it as an example."""
        return any(service.is_starter(picture) for service in self._services.values())

    def is_starter_seed(self, seed: object) -> bool:
        """Whether some model's tabs open with this seed."""
        return any(seed in (service.starters.seed, service.starters.line) for service in self._services.values())


@dataclass(frozen=True)
class Page:
    """What tabs share."""

    model: gr.Dropdown
    tabs: gr.Tabs
    others: Sequence[Tab]


class Tab(ABC):
    """One tab of the page.

    `build` adds its components, `connect` wires them, and `draw` gives the values of `outputs` for a state: when the
    model changes, when a link is opened, after a reload, and when a face is sent here. So no tab can miss one of these.
    """

    name: ClassVar[str]
    """In links and in the ids of its components."""
    title: ClassVar[str]
    action: ClassVar[str] = ""
    """The button that sends faces here; empty if it takes none."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.state: dict[str, Any] = {}
        """Components that a link restores, by the name of their value in it."""
        self.inputs: list[FaceInput] = []
        """Those of `state` that take the faces that are sent here."""
        self.outputs: list[Any] = []
        """Components that `draw` sets."""

    @abstractmethod
    def build(self) -> None:
        """Add the components, as the first model draws them, and fill `state`, `inputs` and `outputs`."""

    @abstractmethod
    def connect(self, page: Page) -> None:
        """Wire the events, when all tabs are built."""

    @abstractmethod
    def draw(self, service: Service, state: State) -> list[Any]:
        """The values of `outputs`. Raises InputError or ImageError for a state that is not valid."""

    def draw_or_default(self, service: Service, state: State) -> list[Any]:
        """As `draw`; a state that is not valid is replaced by that of a new visitor."""
        try:
            return self.draw(service, state)
        except EXPECTED:
            return self.draw(service, {})

    def remember(self, event: Any, page: Page) -> Any:
        """After this event, note the state in the browser's history."""
        names = json.dumps([self.name, list(self.state)])
        js = f"(model, ...values) => {{ const [tab, names] = {names}; animeVAE.remember(tab, model, names, values); }}"
        return event.then(None, [page.model, *self.state.values()], js=js)

    def picture(self, service: Service, state: State, name: str, starter: int | Pixels | None) -> Pixels | None:
        """The picture of a state: an array, a client's payload, or a token of a link.

        starter: what a new visitor sees there, the number of one of the model's starter faces or a picture; what some
        model's tabs open with is replaced by it.
        """
        start = service.starter_faces[starter] if isinstance(starter, int) else starter
        if name not in state:
            return None if state.get("sent") else start
        value = state[name].face if isinstance(state[name], Masked) else state[name]
        if isinstance(value, str):
            return service.face_of_token(value) if value else None
        found: Pixels | None = value if isinstance(value, np.ndarray) else read_payload(value)
        if found is None or state.get("sent") or not self.models.is_starter(found):
            return found
        return start


def send(source: FaceGrid, button: gr.Button, target: Tab, page: Page) -> None:
    """A click on `button` takes the picked faces of `source` to another tab."""

    @friendly
    def run(model: str, selection: Selection, *values: Any) -> list[Any]:
        least = min(2, len(target.inputs))
        if len(selection.faces) < least:
            raise InputError("pick a face first" if least == 1 else "pick two to four faces first")
        state = dict(zip(target.state, values, strict=True))
        names = [name for name, component in target.state.items() if component in target.inputs]
        for name in names:
            state.pop(name)
        # A face that was sent is the visitor's choice, even where it is one that a tab opens with.
        state |= dict(zip(names, selection.faces, strict=False)) | {"sent": True}
        return [gr.Tabs(selected=target.name), *target.draw(target.models[model], state)]

    inputs = [page.model, source, *target.state.values()]
    event = button.click(run, inputs, [page.tabs, *target.outputs], **PRIVATE)
    target.remember(event, page)


def send_buttons(source: FaceGrid, page: Page) -> None:
    """A button for each tab that takes faces."""
    for target in page.others:
        if target.action:
            button = gr.Button(target.action, size="sm", elem_id=f"{source.elem_id}-to-{target.name}", min_width=80)
            send(source, button, target, page)


def tools(grid: FaceGrid, columns: int = 0) -> None:
    """Buttons that keep and download the picked faces of a grid, or all of them if none is picked; no server needed."""
    keep = gr.Button("♥ Keep", size="sm", elem_id=f"{grid.elem_id}-keep", min_width=80)
    save = gr.Button("Download", size="sm", elem_id=f"{grid.elem_id}-save", min_width=80)
    keep.click(None, grid, js="(faces) => animeVAE.keep(animeVAE.chosen(faces))")
    arguments = f"animeVAE.chosen(faces), 'faces.png', {columns or 'undefined'}"
    save.click(None, grid, js=f"(faces) => {{ animeVAE.download({arguments}); }}")


def require_picture(picture: Pixels | None, name: str = "a picture") -> Pixels:
    """The picture, or a sentence that asks for it."""
    if picture is None:
        raise InputError(f"choose {name} first: drop one, paste one, or send a face here from New faces")
    return picture


def drop_none(*pictures: Pixels | None) -> list[Pixels]:
    """The pictures that are there."""
    return [picture for picture in pictures if picture is not None]


def number(state: State, name: str, default: float) -> Any:
    """A number of a state, of which a link has the text; InputError for another text."""
    value = state.get(name, default)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError as error:
            raise InputError(f"{name}: expected a number") from error
        value = int(value) if np.isfinite(value) and value == int(value) else value
    return value


def parse_json(text: str, name: str) -> Any:
    """The value of a JSON text in a link; InputError for another text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected JSON") from error


def headline(text: str) -> gr.HTML:
    """What to do on a tab, in one sentence."""
    return gr.HTML(f"<h2>{html.escape(text)}</h2>", elem_classes="headline")
