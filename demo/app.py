"""The page: tabs over a `Studio` each, named endpoints, and the settings of a server that strangers use.

    python -m demo        # http://127.0.0.1:7860

Visitors share nothing: what a tab needs travels with its request, and a face is a seed, a lineage or a picture.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from demo.components import (
    Compare,
    FaceGrid,
    FaceImage,
    Film,
    FlipBook,
    Painter,
    Painting,
    Picks,
    latent_chart,
    picture_input,
    refusal,
)
from demo.evolution import Lineage
from demo.rate_limit import RateLimit
from demo.service import FPS, MAX_FACES, MAX_SEED, NAMED, STEPS, STRENGTH, STRONG, Studio, psnr, whole
from vae_runtime import VAE, InputError, VAEError
from vae_runtime.config import PRIOR_FILE
from vae_runtime.figures import save_animation
from vae_runtime.images import Pixels, fit_square

Slot: TypeAlias = Pixels | None
"""A picture that may be missing."""
Function = TypeVar("Function", bound=Callable[..., Any])

TITLE = "anime-vae"
IDEA = "Every face here is a short list of numbers. Draw new ones, blend them, bend them, breed them."
CSS_FILE = Path(__file__).with_name("style.css")
EXAMPLES = Path(__file__).with_name("examples")
FIRST_SEED = 7
FIRST_FACES = 24
PRIORS = [("fitted to real faces", "model"), ("N(0, I)", "unit")]
TABS = ("sample", "reconstruct", "interpolate", "edit", "inpaint", "evolve", "about")
QUEUE = 32
"""Requests that wait; one more is told that the page is busy."""
PHOTOGRAPH = 512
"""Pixels: what is larger is made so small before it is edited."""
LOOP_SIDE = 256
"""Pixels of a loop's frame, at least: whole multiples of the model's."""

log = logging.getLogger("demo")


def friendly(function: Function) -> Function:
    """Errors of ours become a sentence on the page; others an identifier that is also in the log, and no more."""

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
            raise gr.Error(f"Something went wrong here; the log knows it as {name}.", print_exception=False) from error

    return guarded  # type: ignore[return-value]  # the same signature


def given(picture: Slot, name: str = "a picture") -> Pixels:
    """The picture, or a sentence that asks for it."""
    if picture is None:
        raise InputError(f"give {name} first: drop one, paste one, or send a face here from Sample")
    return picture


def filled(*slots: Slot) -> list[Pixels]:
    """The pictures that are there."""
    return [picture for picture in slots if picture is not None]


class Answers:
    """What the page and its API answer. The docstrings are the API's documentation."""

    def __init__(self, studios: dict[str, Studio]) -> None:
        self.studios = studios

    def studio(self, model: str) -> Studio:
        """The studio of a shipped model."""
        if not isinstance(model, str) or model not in self.studios:
            raise InputError(f"model: expected one of {', '.join(self.studios)}")
        return self.studios[model]

    @friendly
    def sample(self, model: str, faces: int, seed: int, temperature: float, prior: str) -> Pixels:
        """Draw new faces from the prior: the same seed gives the same faces."""
        if prior not in ("model", "unit"):
            raise InputError("prior: expected model or unit")
        return self.studio(model).sample(faces, seed, temperature, prior)

    @friendly
    def shrink(self, picture: Slot) -> Any:
        """The central square, 512 pixels wide: so a photograph is not decoded for every move of a slider."""
        if picture is None or max(picture.shape) <= PHOTOGRAPH:
            return gr.skip()
        return fit_square(picture, min(*picture.shape[:2], PHOTOGRAPH))

    @friendly
    def reconstruct(self, model: str, picture: Slot) -> tuple[tuple[Pixels, Pixels] | None, str, str]:
        """Encode a picture and decode it again: both pictures, the figures as a sentence, and the latents' chart."""
        if picture is None:
            return None, "", ""
        found = self.studio(model).reconstruct(picture)
        told = int((found.kl > 0.1).sum())
        text = (
            f"**{found.psnr:.1f} dB** PSNR. The picture became {len(found.mu)} numbers, "
            f"**{told}** of which tell more than 0.1 nats of it, **{found.kl.sum():.0f} nats** in all."
        )
        return (found.original, found.face), text, latent_chart(found.mu, found.kl)

    @friendly
    def interpolate(
        self,
        model: str,
        first: Slot,
        second: Slot,
        third: Slot,
        fourth: Slot,
        method: str,
        steps: int,
    ) -> tuple[Slot, Slot]:
        """The faces between two to four pictures: the way through all of them, and for four the square between them."""
        pictures = filled(first, second, third, fourth)
        if len(pictures) < 2:
            return None, None
        studio = self.studio(model)
        return studio.strip(pictures, steps, method), studio.square(pictures, method)  # type: ignore[arg-type]

    @friendly
    def loop(self, model: str, first: Slot, second: Slot, third: Slot, fourth: Slot, method: str, kind: str) -> Film:
        """A walk through two to four pictures and back, as WebM, GIF or WebP: the file as data URI, and its frames."""
        if kind not in ("webm", "gif", "webp"):
            raise InputError("format: expected webm, gif or webp")
        frames = self.studio(model).loop(filled(first, second, third, fourth), method)  # type: ignore[arg-type]  # checked there
        scale = -(-LOOP_SIDE // frames.shape[1])
        with tempfile.TemporaryDirectory(prefix="anime-vae-") as place:
            file = Path(place, f"anime-vae-loop.{kind}")
            save_animation(frames.repeat(scale, axis=1).repeat(scale, axis=2), file, FPS)
            return Film(frames, FPS, file.name, file.read_bytes())

    @friendly
    def edit(self, model: str, picture: Slot, *strengths: float) -> Slot:
        """Move a face along the model's directions, each from -3 to 3 standard deviations; 0 is the reconstruction.

        The first 8 numbers are for the strongest directions, the next 24 for the named ones, in the order of the page.
        """
        if picture is None:
            return None
        studio = self.studio(model)
        named = strengths[STRONG : STRONG + len(studio.named)]
        return studio.edit(picture, [*strengths[: len(studio.strong)], *named])[None]

    @friendly
    def analogy(self, model: str, a: Slot, b: Slot, c: Slot) -> Pixels:
        """A - B + C in the latent space: what A has over B, given to C."""
        studio = self.studio(model)
        return studio.analogy(given(a, "A"), given(b, "B"), given(c, "C"))[None]

    @friendly
    def prepare(self, model: str, picture: Slot) -> Slot:
        """The picture as the model sees it: its central square, small."""
        face: Slot = None if picture is None else self.studio(model).vae.prepare(picture)[0]
        return face

    @friendly
    def inpaint(self, model: str, painting: Painting | None, steps: int) -> Pixels:
        """Paint what the mask hides anew, in `steps` steps; the pixels around it stay as they are."""
        given(None if painting is None else painting.face)
        assert painting is not None
        return self.studio(model).inpaint(painting.face, painting.hidden, steps)[None]

    @friendly
    def invert(self, model: str, painting: Painting | None, steps: int) -> tuple[Pixels, str]:
        """Search the code that fits a face best: the face, the encoder's reconstruction, the closer one, and PSNRs."""
        faces = self.studio(model).invert(given(None if painting is None else painting.face), steps)
        first, better = (psnr(faces[0], face) for face in faces[1:])
        return (
            faces,
            f"The face; the encoder's reconstruction, **{first:.1f} dB**; the closer, **{better:.1f} dB**.",
        )

    @friendly
    def evolve(self, model: str, lineage: str) -> Pixels:
        """The sixteen faces of the youngest generation of a lineage such as 7-3.5x40: seed 7, parents 3 and 5, 40 %."""
        return self.studio(model).evolve(Lineage.parse(lineage))

    @friendly
    def breed(self, model: str, picks: Picks, lineage: str, mutation: int) -> tuple[Pixels, str, str]:
        """The next generation: the faces, the lineage that leads to them, and its heading."""
        line = Lineage.parse(lineage).child(picks.places, whole(mutation, "mutation", 0, 100))
        return self.studio(model).evolve(line), str(line), generation(line)

    @friendly
    def fresh(self, model: str, seed: int) -> tuple[Pixels, str, str]:
        """A new line, from its seed."""
        line = Lineage(whole(seed, "seed", 0, MAX_SEED))
        return self.studio(model).evolve(line), str(line), generation(line)


def generation(line: Lineage) -> str:
    """The heading of the Evolve tab."""
    number = len(line.steps)
    return f"### Generation {number + 1}" + ("" if number else " · pick the faces you like")


def about(studio: Studio) -> str:
    """The model's card and what runs it, as Markdown."""
    vae, config = studio.vae, studio.vae.config
    prior = (
        vae.prior.kind if PRIOR_FILE not in config.files else f"{vae.prior.kind}, fitted to the codes of those faces"
    )
    names = ", ".join(slider.label.lower() for slider in studio.named) or "none; the sliders were measured"
    rows = {
        "model": f"`{config.name}`, preset `{config.preset}`, id `{config.model_id}`",
        "pictures": f"{vae.image_size} x {vae.image_size}, and codes of {vae.latent_dim} numbers",
        "trained on": f"{config.training_data.count:,} faces of `{config.training_data.name}`",
        "where new faces come from": prior,
        "named directions": names,
        "runs on": f"{vae.device}, ONNX Runtime {_version('onnxruntime')}",
        "versions": f"anime-vae {_version('anime-vae')}, gradio {version('gradio')}, Python {sys.version.split()[0]}",
    }
    rows |= {name.replace("_", " "): f"{value:g}" for name, value in config.metrics.items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""### The model

| | |
|---|---|
{table}

### How it works

A variational autoencoder is two small networks. The encoder turns a face into a short list of numbers, the code; the
decoder paints a face from any code. Faces that are alike have codes that are near, so what lies between two codes is a
face too.

### Limits

It knows faces like those it was trained on, cut and centred as they were; any other picture comes back as such a face.
What a code leaves open is averaged, so fine detail is soft. It is a toy for pictures and no means to recognise or to
judge people. Pictures you give are used for your answer, deleted within two hours, and never shown to anyone else.
"""


def _version(package: str) -> str:
    try:
        return version(package)
    except Exception:  # onnxruntime-gpu instead, or a Space, which is a folder and not installed
        return "as in this folder" if package == "anime-vae" else "for CUDA"


@dataclass
class Page:
    """The parts that tabs share: the answers, the choice of the model, and where faces can be sent."""

    answers: Answers
    model: gr.Dropdown
    tabs: gr.Tabs

    @property
    def first(self) -> Studio:
        """The studio that the page opens with."""
        return next(iter(self.answers.studios.values()))


def build_demo(models: VAE | Sequence[VAE]) -> gr.Blocks:
    """The page over one model or several, the first of which it opens with. InputError for two of one name."""
    vaes = [models] if isinstance(models, VAE) else list(models)
    studios = {vae.config.name: Studio(vae) for vae in vaes}
    if not studios or len(studios) < len(vaes):
        raise InputError("models: expected one or more, each with a name of its own")
    # Gradio counts visitors and, after every event, tabulates all earlier ones: neither is wanted here.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")
    demo = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600))
    with demo:
        with gr.Row(elem_id="head"):
            gr.HTML(f"<h1>{TITLE}</h1><p>{IDEA}</p>", elem_id="title")
            model = gr.Dropdown(
                list(studios), value=next(iter(studios)), label="Model", elem_id="model", min_width=150, scale=0
            )
        with gr.Tabs(elem_id="tabs") as tabs:
            page = Page(Answers(studios), model, tabs)
            grid, settings, sends = _sample_tab(page)
            reconstruct_in = _reconstruct_tab(page)
            interpolate_in = _interpolate_tab(page)
            edit_in, edit_updates = _edit_tab(page)
            inpaint_in, inpaint_parts = _inpaint_tab(page)
            evolve_parts = _evolve_tab(page)
            with gr.Tab("About", id="about"):
                card = gr.Markdown(about(page.first), elem_id="card")
        _wire_sends(page, grid, sends, (reconstruct_in, interpolate_in, edit_in, inpaint_in))
        _wire_model(page, grid, settings, evolve_parts, edit_updates, inpaint_parts, card)
        _wire_link(demo, page, grid, settings, evolve_parts)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    demo.queue(max_size=QUEUE, default_concurrency_limit=cores)
    return demo


def _sample_tab(page: Page) -> tuple[FaceGrid, list[Any], list[gr.Button]]:
    with gr.Tab("Sample", id="sample"), gr.Row():
        with gr.Column(scale=5, min_width=320):
            first = page.first.sample(FIRST_FACES, FIRST_SEED)
            grid = FaceGrid("Faces", value=first, most=4, note="No faces yet: press New faces.", elem_id="sample-faces")
            with gr.Row(elem_classes="sends"):
                gr.HTML("<p>Pick up to four, then</p>", elem_classes="hint")
                names = ("Reconstruct", "Interpolate", "Edit", "Inpaint")
                sends = [gr.Button(name, size="sm", elem_id=f"send-{name.lower()}", min_width=90) for name in names]
        with gr.Column(scale=2, min_width=260):
            new = gr.Button("New faces", variant="primary", elem_id="new-faces")
            faces = gr.Slider(1, MAX_FACES, FIRST_FACES, step=1, label="Faces", elem_id="sample-count")
            temperature = gr.Slider(
                0,
                2,
                1,
                step=0.05,
                label="Temperature",
                info="Lower: plainer and more alike",
                elem_id="sample-temperature",
            )
            seed = gr.Number(FIRST_SEED, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", elem_id="sample-seed")
            fitted = PRIOR_FILE in page.first.vae.config.files
            prior = gr.Radio(PRIORS, value="model", label="Prior", visible=fitted, elem_id="sample-prior")
            link = gr.Button("Copy a link to these faces", size="sm", elem_id="copy-link")
    settings = [page.model, faces, seed, temperature, prior]
    again: dict[str, Any] = {"fn": page.answers.sample, "inputs": settings, "outputs": grid, "show_progress": "hidden"}
    remember: dict[str, Any] = {"fn": None, "inputs": settings, "js": f"(...values) => ({_ADDRESS})('sample', values)"}
    new.click(None, None, seed, js="() => Math.floor(Math.random() * 1e6)").then(
        **again, api_visibility="private", api_name="new_faces"
    ).then(**remember)
    gr.on(
        [faces.input, temperature.input, seed.input, prior.input],
        **again,
        api_name="sample",
        trigger_mode="always_last",
    ).then(**remember)
    link.click(None, settings, js=f"(...values) => ({_ADDRESS})('sample', values, true)")
    return grid, settings, sends


def _reconstruct_tab(page: Page) -> FaceImage:
    face = page.first.sample(1, FIRST_SEED + 1)[0]
    shown, text, bars = page.answers.reconstruct(page.model.value, face)
    with gr.Tab("Reconstruct", id="reconstruct"), gr.Row():
        with gr.Column(scale=1, min_width=300):
            picture = picture_input("Your picture", value=face, elem_id="reconstruct-in", height=360)
            gr.Examples(
                [[str(path)] for path in sorted(EXAMPLES.glob("*.png"))], [picture], label="Or one of these drawn faces"
            )
        with gr.Column(scale=1, min_width=300):
            note = "Give a picture, and the model draws it again from its code."
            compare = Compare("Original and reconstruction", value=shown, note=note, elem_id="reconstruct-out")
            figures = gr.Markdown(text, label="Figures", elem_id="reconstruct-figures")
            chart = gr.HTML(bars, label="Latents", elem_id="reconstruct-latents")
    picture.change(
        page.answers.reconstruct,
        [page.model, picture],
        [compare, figures, chart],
        api_name="reconstruct",
        show_progress="hidden",
        trigger_mode="always_last",
    )
    return picture


_SETTLE = "() => new Promise((resolve) => setTimeout(resolve, 50))"


def _interpolate_tab(page: Page) -> list[FaceImage]:
    start = page.first.sample(4, FIRST_SEED)
    with gr.Tab("Interpolate", id="interpolate"):
        with gr.Row(elem_classes="slots"):
            slots = [
                picture_input(
                    f"Face {i + 1}", value=start[i], elem_id=f"interpolate-{i + 1}", height=190, min_width=140
                )
                for i in range(4)
            ]
        with gr.Row():
            ways = [("slerp, along the sphere", "slerp"), ("lerp, straight", "lerp")]
            method = gr.Radio(ways, value="slerp", label="Way", elem_id="interpolate-method")
            steps = gr.Slider(2, 16, 8, step=1, label="Faces from one to the next", elem_id="interpolate-steps")
        note = "Two to four faces are needed; send them here from Sample, or drop your own."
        first = page.first
        strip = FaceGrid(
            "The way", value=first.strip(start), columns=8, note=note, kind="strip", elem_id="interpolate-strip"
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                square = FaceGrid(
                    "The square between four",
                    value=first.square(start),
                    columns=7,
                    note="With four faces, the square between them appears here.",
                    kind="square",
                    elem_id="interpolate-square",
                )
            with gr.Column(scale=1, min_width=300):
                kind = gr.Radio(["webm", "gif", "webp"], value="webm", label="Loop as", elem_id="loop-format")
                make = gr.Button("Make a loop", variant="primary", elem_id="make-loop")
                film = FlipBook("Loop", note="The loop plays here, and can be kept.", elem_id="loop")
    redraw: dict[str, Any] = {
        "fn": page.answers.interpolate,
        "inputs": [page.model, *slots, method, steps],
        "outputs": [strip, square],
        "show_progress": "hidden",
    }
    gr.on([method.input, steps.input], api_name="interpolate", trigger_mode="always_last", **redraw)
    # Faces sent here fill the slots one after another: asked at each change, the page would go on to show whichever
    # answer came last, that to a state between, too. So the values are read when all are in their places.
    settled = gr.on([slot.change for slot in slots], None, js=_SETTLE, trigger_mode="always_last")
    settled.then(api_visibility="private", **redraw)
    make.click(page.answers.loop, [page.model, *slots, method, kind], film, api_name="loop")
    return slots


def _edit_tab(page: Page) -> tuple[FaceImage, tuple[list[gr.Slider], Any]]:
    first, start = page.first, page.first.sample(5, FIRST_SEED)
    with gr.Tab("Edit", id="edit"):
        with gr.Row(elem_id="edit-row"):
            with gr.Column(scale=2, min_width=300, elem_id="edit-faces"):
                note = "Give a face, then move the sliders."
                result = FaceGrid(
                    "Edited", value=first.edit(start[4], [])[None], note=note, kind="one", elem_id="edit-out"
                )
                picture = picture_input("Face", value=start[4], elem_id="edit-in", height=190)
            with gr.Column(scale=3, min_width=300):
                sliders = _edit_sliders(first)
                reset = gr.Button("All back to zero", size="sm", elem_id="edit-reset")
        gr.Markdown("### A - B + C\nWhat A has over B, given to C.")
        with gr.Row(elem_classes="slots"):
            three = [
                picture_input(name, value=face, elem_id=f"analogy-{name.lower()}", height=190, min_width=140)
                for name, face in zip("ABC", start[1:4], strict=True)
            ]
            with gr.Column(min_width=140):
                equals = gr.Button("A - B + C =", variant="primary", elem_id="analogy-run")
                outcome = FaceGrid("A - B + C", note="Press for the answer.", kind="one", elem_id="analogy-out")
    inputs = [page.model, picture, *sliders]
    live: dict[str, Any] = {"fn": page.answers.edit, "inputs": inputs, "outputs": result, "show_progress": "hidden"}
    gr.on(
        [picture.change, *(slider.input for slider in sliders)],
        **live,
        api_name="edit",
        trigger_mode="always_last",
        queue=False,
    )
    picture.input(page.answers.shrink, picture, picture, api_visibility="private", show_progress="hidden")
    reset.click(None, None, sliders, js=f"() => Array({len(sliders)}).fill(0)").then(
        **live, api_visibility="private", api_name="edit_again"
    )
    equals.click(page.answers.analogy, [page.model, *three], outcome, api_name="analogy", show_progress="hidden")
    return picture, (sliders, live)


def _edit_sliders(studio: Studio) -> list[gr.Slider]:
    """A fixed set of sliders, of which each model uses its own: the strongest directions, and the named ones.

    The named ones stand first on the page, and last in the list.
    """
    labels = list(enumerate(slider_labels(studio), 1))

    def row(part: list[tuple[int, tuple[str, bool]]]) -> list[gr.Slider]:
        with gr.Row(elem_classes="sliders"):
            return [
                gr.Slider(
                    -STRENGTH,
                    STRENGTH,
                    0,
                    step=0.1,
                    label=label,
                    visible=visible,
                    elem_id=f"edit-{number}",
                    min_width=200,
                )
                for number, (label, visible) in part
            ]

    named = row(labels[STRONG:])
    gr.Markdown("Along the strongest directions, whatever they do", elem_classes="aside")
    return row(labels[:STRONG]) + named


def slider_labels(studio: Studio) -> list[tuple[str, bool]]:
    """(label, whether this model has it) of each of the `STRONG + NAMED` sliders."""
    labels = [(slider.label, True) for slider in studio.strong]
    labels += [(f"Direction {i + 1}", False) for i in range(len(labels), STRONG)]
    labels += [(slider.label, True) for slider in studio.named]
    return labels + [(f"Attribute {i + 1 - STRONG}", False) for i in range(len(labels), STRONG + NAMED)]


def _inpaint_tab(page: Page) -> tuple[FaceImage, tuple[gr.Row, gr.Markdown, FaceImage, Painter]]:
    first = page.first
    face = first.sample(6, FIRST_SEED)[5]
    with gr.Tab("Inpaint", id="inpaint"):
        sorry = gr.Markdown(no_inverse(first), visible=not first.can_invert, elem_id="inpaint-sorry")
        with gr.Row(visible=first.can_invert, elem_id="inpaint-row") as row:
            with gr.Column(scale=1, min_width=300):
                note = "Give a face, then paint over a part of it."
                painter = Painter("Paint over a part", value=face, note=note, elem_id="inpaint-paint")
                run = gr.Button("Paint it anew", variant="primary", elem_id="inpaint-run")
                picture = picture_input("Face", value=face, elem_id="inpaint-in", height=190)
            with gr.Column(scale=1, min_width=300):
                note = "Paint over a part of the face, and the model finds a face that goes with the rest."
                outcome = FaceGrid("Inpainted", note=note, kind="one", elem_id="inpaint-out")
                steps = gr.Slider(
                    10, STEPS, 150, step=10, label="Steps", info="More: closer, and longer", elem_id="inpaint-steps"
                )
                search = gr.Button("Search a closer code for the whole face", elem_id="invert-run")
                note = "The encoder answers at once; a search for the code that fits best comes closer."
                found = FaceGrid("Inverted", columns=3, note=note, kind="strip", elem_id="invert-out")
                figures = gr.Markdown(elem_id="invert-figures")
    picture.change(
        page.answers.prepare,
        [page.model, picture],
        painter,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
    )
    # Some seconds each: one at a time, so that the other tabs stay quick.
    slow: dict[str, Any] = {"concurrency_id": "inverse", "concurrency_limit": 1}
    inputs = [page.model, painter, steps]
    run.click(page.answers.inpaint, inputs, outcome, api_name="inpaint", **slow)
    search.click(page.answers.invert, inputs, [found, figures], api_name="invert", show_progress_on=found, **slow)
    return picture, (row, sorry, picture, painter)


def no_inverse(studio: Studio) -> str:
    """What the Inpaint tab says for a model that cannot do it."""
    return f"The model `{studio.vae.config.name}` came without the graph that this needs; choose another one above."


def _evolve_tab(page: Page) -> tuple[FaceGrid, gr.Textbox, gr.Markdown, gr.Number]:
    line = Lineage(FIRST_SEED)
    with gr.Tab("Evolve", id="evolve"), gr.Row():
        with gr.Column(scale=5, min_width=320):
            heading = gr.Markdown(generation(line), elem_id="evolve-heading")
            grid = FaceGrid(
                "Generation", value=page.first.evolve(line), most=16, kind="sixteen", elem_id="evolve-faces"
            )
        with gr.Column(scale=2, min_width=260):
            breed = gr.Button("Their children", variant="primary", elem_id="evolve-next")
            mutation = gr.Slider(
                0,
                100,
                35,
                step=5,
                label="Mutation, %",
                info="0: only mixtures of the parents",
                elem_id="evolve-mutation",
            )
            seed = gr.Number(FIRST_SEED, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", elem_id="evolve-seed")
            fresh = gr.Button("Start again", size="sm", elem_id="evolve-fresh")
            lineage = gr.Textbox(
                str(line),
                label="Lineage",
                info="Seed and choices; the same text, the same faces",
                elem_id="evolve-lineage",
                max_length=8000,
            )
            link = gr.Button("Copy a link to this generation", size="sm", elem_id="evolve-link")
    parts, settings = [grid, lineage, heading], [page.model, lineage]
    remember: dict[str, Any] = {"fn": None, "inputs": settings, "js": f"(...values) => ({_ADDRESS})('evolve', values)"}
    breed.click(
        page.answers.breed,
        [page.model, grid, lineage, mutation],
        parts,
        api_visibility="private",
        show_progress="hidden",
    ).then(**remember)
    again: dict[str, Any] = {
        "fn": page.answers.fresh,
        "inputs": [page.model, seed],
        "outputs": parts,
        "api_visibility": "private",
    }
    fresh.click(None, None, seed, js="() => Math.floor(Math.random() * 1e6)").then(**again)
    seed.input(**again)
    lineage.submit(page.answers.evolve, settings, grid, api_name="evolve", show_progress="hidden").then(**remember)
    link.click(None, settings, js=f"(...values) => ({_ADDRESS})('evolve', values, true)")
    return grid, lineage, heading, seed


_ADDRESS = """(tab, values, copy) => {
  const names = {sample: ['model', 'faces', 'seed', 'temperature', 'prior'], evolve: ['model', 'lineage']}[tab];
  const query = new URLSearchParams({tab});
  names.forEach((name, i) => query.set(name, values[i]));
  const address = location.origin + location.pathname + '?' + query;
  history.replaceState(null, '', address);
  if (copy && navigator.clipboard) navigator.clipboard.writeText(address);
}"""


def _wire_sends(
    page: Page, grid: FaceGrid, sends: list[gr.Button], targets: tuple[FaceImage, list[FaceImage], FaceImage, FaceImage]
) -> None:
    """The buttons under the samples: picked faces become the inputs of another tab."""
    reconstruct_in, slots, edit_in, inpaint_in = targets

    @friendly
    def one(picks: Picks, tab: str) -> tuple[Any, Pixels]:
        if not picks.faces:
            raise InputError("pick a face first: a click on it")
        return gr.Tabs(selected=tab), picks.faces[0]

    @friendly
    def several(picks: Picks) -> tuple[Any, ...]:
        if len(picks.faces) < 2:
            raise InputError("pick two to four faces first: a click on each")
        rest = [None] * (len(slots) - len(picks.faces))
        return gr.Tabs(selected="interpolate"), *picks.faces, *rest

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    sends[0].click(functools.partial(one, tab="reconstruct"), grid, [page.tabs, reconstruct_in], **hidden)
    sends[1].click(several, grid, [page.tabs, *slots], **hidden)
    sends[2].click(functools.partial(one, tab="edit"), grid, [page.tabs, edit_in], **hidden)
    sends[3].click(functools.partial(one, tab="inpaint"), grid, [page.tabs, inpaint_in], **hidden)


def _wire_model(
    page: Page,
    grid: FaceGrid,
    settings: list[Any],
    evolve_parts: tuple[FaceGrid, gr.Textbox, gr.Markdown, gr.Number],
    edit: tuple[list[gr.Slider], Any],
    inpaint: tuple[gr.Row, gr.Markdown, FaceImage, Painter],
    card: gr.Markdown,
) -> None:
    """Another model: its faces, its sliders, its card."""
    generation_grid, lineage, *_ = evolve_parts
    sliders, live = edit
    row, sorry, picture, painter = inpaint

    @friendly
    def change(model: str, faces: int, seed: int, temperature: float, prior: str, line: str, face: Slot) -> list[Any]:
        answers, studio = page.answers, page.answers.studio(model)
        updates = [gr.Slider(label=label, visible=visible, value=0) for label, visible in slider_labels(studio)]
        drawn = answers.sample(model, faces, seed, temperature, prior)
        shown = gr.Radio(visible=PRIOR_FILE in studio.vae.config.files)
        can = studio.can_invert
        painting = [gr.Row(visible=can), gr.Markdown(no_inverse(studio), visible=not can), answers.prepare(model, face)]
        return [drawn, answers.evolve(model, line), about(studio), shown, *painting, *updates]

    outputs = [grid, generation_grid, card, settings[-1], row, sorry, painter, *sliders]
    page.model.input(
        change, [*settings, lineage, picture], outputs, api_visibility="private", show_progress="hidden"
    ).then(**live, api_visibility="private", api_name="edit_again")


def _wire_link(
    demo: gr.Blocks,
    page: Page,
    grid: FaceGrid,
    settings: list[Any],
    evolve_parts: tuple[FaceGrid, gr.Textbox, gr.Markdown, gr.Number],
) -> None:
    """A page that was opened by a link shows what the link says; what it says wrongly is left at its default."""

    def restore(request: gr.Request) -> list[Any]:
        asked = {key: str(value)[:8192] for key, value in dict(request.query_params).items()}
        tab = asked.get("tab", "")
        if tab not in TABS:
            return [gr.skip() for _ in outputs]
        answers = page.answers
        model = asked.get("model", "")
        model = model if model in answers.studios else next(iter(answers.studios))
        faces, seed = _number(asked, "faces", FIRST_FACES), _number(asked, "seed", FIRST_SEED)
        temperature, prior = _number(asked, "temperature", 1.0), asked.get("prior", "model")
        try:
            drawn = answers.sample(model, faces, seed, temperature, prior)
        except gr.Error:
            faces, seed, temperature, prior = FIRST_FACES, FIRST_SEED, 1.0, "model"
            drawn = answers.sample(model, faces, seed, temperature, prior)
        try:
            line = Lineage.parse(asked.get("lineage", str(FIRST_SEED)))
        except InputError:
            line = Lineage(FIRST_SEED)
        youngest = answers.evolve(model, str(line))
        evolved = [youngest, str(line), generation(line), line.seed]
        return [gr.Tabs(selected=tab), drawn, model, faces, seed, temperature, prior, *evolved]

    outputs = [page.tabs, grid, *settings, *evolve_parts]
    demo.load(friendly(restore), None, outputs, api_visibility="private", show_progress="hidden")


def _number(asked: dict[str, str], name: str, default: float) -> Any:
    try:
        value = float(asked.get(name, default))
    except ValueError:
        return default
    return int(value) if np.isfinite(value) and value == int(value) else value


def theme() -> gr.themes.Base:
    """Quiet greys, one warm colour, and the fonts that the visitor's device has: nothing is fetched."""
    fonts = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
    look: gr.themes.Base = gr.themes.Base(
        primary_hue="rose",
        secondary_hue="rose",
        neutral_hue="stone",
        radius_size="md",
        spacing_size="md",
        font=fonts,
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )
    return look.set(button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")


def serve(
    demo: gr.Blocks, host: str = "127.0.0.1", port: int | None = 7860, *, rate: float = 10.0, wait: bool = True
) -> str:
    """Start the server and return its address; with `wait`, only when it has ended.

    What strangers may do is bounded: `rate` requests a second from one address (0: any number), 8 MB an upload, a
    queue of `QUEUE`, files gone within two hours, no traceback and no path in an answer, no file of the machine
    served, nothing fetched, no share link. Behind proxies, $FORWARDED_ALLOW_IPS names those whose X-Forwarded-For is
    believed.
    """
    _, address, _ = demo.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not wait,
        quiet=not wait,
        theme=theme(),
        css_paths=CSS_FILE,
        footer_links=["api"],
        max_file_size="8mb",
        max_threads=16,
        state_session_capacity=100,
        show_error=False,
        share=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        pwa=False,
        app_kwargs={"middleware": [Middleware(RateLimit, rate=rate)] if rate else []},
    )
    return str(address)
