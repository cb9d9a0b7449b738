"""The page's own components: faces to pick, a slider between two pictures, and a way in that trusts no file.

Faces travel as PNG data URIs in the model's own resolution and are enlarged by the browser, pixel by pixel: exact, one
round trip, and no file on the server.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio import component_meta
from numpy.typing import NDArray
from PIL import Image

from vae_runtime import ImageError, load_image
from vae_runtime.images import Pixels

URI = "data:image/png;base64,"
MAX_URI = 2_000_000
"""Longest data URI that is taken back: a face of 512 x 512."""
BARS = 48
"""Latents in the chart."""

# Gradio would write a stub file beside this one each time it is imported.
component_meta.create_or_modify_pyi = lambda *_: None


def to_uri(face: Pixels) -> str:
    """A picture (S, S, 3) as a PNG data URI, lossless."""
    file = io.BytesIO()
    Image.fromarray(face).save(file, "PNG", compress_level=3)
    return URI + base64.b64encode(file.getvalue()).decode()


def from_uri(text: object) -> Pixels:
    """The picture of a data URI, through the runtime's funnel; ImageError for anything else."""
    if not isinstance(text, str) or not text.startswith(URI) or len(text) > MAX_URI:
        raise ImageError("face: expected a PNG data URI")
    try:
        data = base64.b64decode(text.removeprefix(URI), validate=True)
    except ValueError as error:
        raise ImageError("face: not base64") from error
    return load_image(data)


def refusal(error: Exception) -> gr.Error:
    """An error of ours as a sentence on the page; the place of a picture in a list tells a visitor nothing."""
    text = str(error.args[-1] if error.args else error)
    for prefix in ("images[0]: ", "bytes: ", "image: "):
        text = text.removeprefix(prefix)
    return gr.Error(html.escape(text[:1].upper() + text[1:300]), title="Not this one", print_exception=False)


class FaceImage(gr.Image):
    """A picture from a visitor: upload, webcam or clipboard, read by `vae_runtime.images.load_image` and nothing else.

    `gr.Image` would decode the file on its own, without the limits of the funnel. Made by `picture_input`, for Gradio
    reads a component's options off the signature of its class.
    """

    def preprocess(self, payload: Any) -> Pixels | None:
        """The upload as RGB uint8 (H, W, 3), None if there is none; gr.Error with a sentence if it is refused."""
        if payload is None:
            return None
        if not payload.path:  # an address to fetch, which no picture here has
            raise gr.Error("Give the picture itself.", print_exception=False)
        try:
            return load_image(Path(payload.path).read_bytes())
        except ImageError as error:
            raise refusal(error) from error
        except OSError as error:
            raise gr.Error("This picture is no longer here; give it again.", print_exception=False) from error

    def get_block_name(self) -> str:
        """Gradio's own front end draws it."""
        return "image"


def picture_input(label: str, **options: Any) -> FaceImage:
    """A `FaceImage` as all tabs have it."""
    return FaceImage(
        label=label,
        type="numpy",
        format="png",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        buttons=[],
        elem_classes=["face-image"],
        placeholder="Drop a face here",
        alt_text=label,
        **options,
    )


@dataclass(frozen=True)
class Picks:
    """Which faces of a grid are picked."""

    places: tuple[int, ...]
    faces: list[Pixels]


class FaceGrid(gr.HTML):
    """Faces in a grid; with `most` > 0 a click picks one, and at most so many.

    On the way out: uint8 (n, S, S, 3), or None for the empty state. On the way in: `Picks`. In the API:
    [{"src": PNG data URI, "picked": boolean}, ...].
    """

    TEMPLATE = """
{{#if value.length}}<div class="faces KIND" style="--columns: COLUMNS">
{{#each value}}OPEN<img src="{{src}}" alt="face {{@index}}">CLOSE{{/each}}
</div>{{else}}<p class="empty">NOTE</p>{{/if}}"""
    STILL = ('<span class="face">', "</span>")
    BUTTON = (
        '<button type="button" class="face" data-index="{{@index}}" aria-pressed="{{picked}}"'
        ' aria-label="Pick face {{@index}}">',
        "</button>",
    )
    SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-index]');
  if (!button) return;
  const index = Number(button.dataset.index);
  const faces = props.value.map((face, at) => (at === index ? {...face, picked: !face.picked} : face));
  const picked = faces.filter((face) => face.picked);
  if (picked.length > MOST) picked.find((face) => face !== faces[index]).picked = false;
  props.value = faces;
  trigger('select', {index});
});"""

    def __init__(
        self,
        label: str,
        *,
        value: Pixels | None = None,
        most: int = 0,
        columns: int = 0,
        note: str = "",
        kind: str = "many",
        **options: Any,
    ) -> None:
        # Written into the template and not passed as props: Gradio 6.31 forgets those when it updates a grid in a tab
        # that was not opened yet.
        start, end = self.BUTTON if most else self.STILL
        template = self.TEMPLATE.replace("OPEN", start).replace("CLOSE", end).replace("KIND", kind)
        template = template.replace("COLUMNS", str(columns or "auto-fill")).replace("NOTE", html.escape(note))
        super().__init__(
            value=value,
            label=label,
            html_template=template,
            js_on_load=self.SCRIPT.replace("MOST", str(most)),
            apply_default_css=False,
            **options,
        )

    def preprocess(self, payload: Any) -> Picks:  # type: ignore[override]  # Gradio types its value as str
        """The picked faces and their places; gr.Error for what is no grid of ours."""
        if not isinstance(payload, list) or len(payload) > 256 or not all(isinstance(face, dict) for face in payload):
            return Picks((), [])
        places = [place for place, face in enumerate(payload) if face.get("picked") is True][:16]
        try:
            return Picks(tuple(places), [from_uri(payload[place].get("src")) for place in places])
        except ImageError as error:
            raise refusal(error) from error

    def postprocess(self, value: Pixels | None) -> list[dict[str, Any]]:  # type: ignore[override]
        """The faces as data URIs, none of them picked."""
        return [] if value is None else [{"src": to_uri(face), "picked": False} for face in value]

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        face = {"type": "object", "properties": {"src": {"type": "string"}, "picked": {"type": "boolean"}}}
        return {"type": "array", "items": face, "description": "faces as PNG data URIs, in the model's own pixels"}

    def example_payload(self) -> Any:
        """For the API page."""
        return []

    example_value = example_payload


@dataclass(frozen=True)
class Painting:
    """A face, and what of it is painted over."""

    face: Pixels
    """(S, S, 3)"""
    hidden: NDArray[np.bool_]
    """(S, S)"""


class Painter(gr.HTML):
    """A face to paint on: what the brush covers is hidden. Both travel as data URIs in the face's own resolution.

    `gr.ImageEditor` would keep each visitor's layers in the memory of the server, for as long as it runs, and read them
    without the limits of the funnel. On the way out: a face (S, S, 3), or None for the empty state. On the way in: a
    `Painting`, or None. In the API: {"src": PNG data URI, "mask": PNG data URI, white where hidden, or ""}.
    """

    TEMPLATE = """
{{#if value.src}}<div class="painter"><img class="under" src="{{value.src}}" alt="the face to paint on">
{{#if value.mask}}<img class="mask" src="{{value.mask}}" alt="">{{/if}}
<canvas role="img" aria-label="Drag across the face: what the brush covers is painted anew"></canvas></div>
<div class="brush"><label>Brush <input type="range" min="2" max="40" value="12" aria-label="Brush, percent of the face">
</label><button type="button" class="clear">Clear</button></div>
{{else}}<p class="empty">NOTE</p>{{/if}}"""
    # A stroke is drawn on the canvas; when it ends, it is joined to the mask, black and white, and becomes the value.
    SCRIPT = """
let last = null, width = 12;
const find = (name) => element.querySelector(name);
const at = (event) => {
  const box = find('canvas').getBoundingClientRect(), side = find('.under').naturalWidth;
  return [((event.clientX - box.left) / box.width) * side, ((event.clientY - box.top) / box.height) * side];
};
const line = (to) => {
  const context = find('canvas').getContext('2d');
  Object.assign(context, {strokeStyle: '#fff', lineCap: 'round', lineWidth: (width / 100) * find('canvas').width});
  context.beginPath();
  context.moveTo(...last);
  context.lineTo(to[0] + 0.01, to[1]);
  context.stroke();
  last = to;
};
element.addEventListener('pointerdown', (event) => {
  const canvas = event.target.closest('canvas');
  if (!canvas) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  canvas.width = canvas.height = find('.under').naturalWidth;
  last = at(event);
  line(last);
});
element.addEventListener('pointermove', (event) => { if (last) line(at(event)); });
const end = () => {
  if (!last) return;
  last = null;
  const side = find('.under').naturalWidth, old = find('.mask');
  const joined = Object.assign(document.createElement('canvas'), {width: side, height: side});
  const context = joined.getContext('2d');
  context.fillRect(0, 0, side, side);
  if (old) context.drawImage(old, 0, 0);
  context.globalCompositeOperation = 'lighter';
  context.drawImage(find('canvas'), 0, 0);
  props.value = {...props.value, mask: joined.toDataURL('image/png')};
};
element.addEventListener('pointerup', end);
element.addEventListener('pointercancel', end);
element.addEventListener('input', (event) => {
  if (event.target.type === 'range') width = Number(event.target.value);
});
element.addEventListener('click', (event) => {
  if (event.target.closest('.clear')) props.value = {...props.value, mask: ''};
});"""

    def __init__(self, label: str, *, value: Pixels | None = None, note: str, **options: Any) -> None:
        super().__init__(
            value=value,
            label=label,
            html_template=self.TEMPLATE.replace("NOTE", html.escape(note)),
            js_on_load=self.SCRIPT,
            apply_default_css=False,
            **options,
        )

    def preprocess(self, payload: Any) -> Painting | None:  # type: ignore[override]
        """The face and its mask; gr.Error with a sentence for what is no painting of ours."""
        if not isinstance(payload, dict) or not payload.get("src"):
            return None
        try:
            face = from_uri(payload["src"])
            mask = payload.get("mask") or ""
            hidden = from_uri(mask).max(axis=2) > 127 if mask else np.zeros(face.shape[:2], bool)
        except ImageError as error:
            raise refusal(error) from error
        return Painting(face, hidden)

    def postprocess(self, value: Pixels | None) -> dict[str, str]:  # type: ignore[override]
        """The face as a data URI, nothing painted over."""
        return {} if value is None else {"src": to_uri(value), "mask": ""}

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        return {
            "type": "object",
            "properties": {"src": {"type": "string"}, "mask": {"type": "string"}},
            "description": "a face and its mask, white where it is to be painted anew, of one size, as PNG data URIs",
        }

    def example_payload(self) -> Any:
        """For the API page."""
        return {"src": URI, "mask": URI}

    example_value = example_payload


class Compare(gr.HTML):
    """A slider between two pictures of the same size: (before, after), or None for the empty state."""

    TEMPLATE = """
{{#if value.before}}<div class="compare"><img src="{{value.after}}" alt="reconstruction">
<img class="before" src="{{value.before}}" alt="original">
<input type="range" min="0" max="100" value="50" aria-label="From the reconstruction to the original">
<span class="left">original</span><span class="right">reconstruction</span></div>
{{else}}<p class="empty">NOTE</p>{{/if}}"""
    SCRIPT = """
element.addEventListener('input', (event) =>
  element.querySelector('.compare').style.setProperty('--cut', event.target.value + '%'));"""

    def __init__(self, label: str, *, value: tuple[Pixels, Pixels] | None = None, note: str, **options: Any) -> None:
        super().__init__(
            value=value,
            label=label,
            html_template=self.TEMPLATE.replace("NOTE", html.escape(note)),
            js_on_load=self.SCRIPT,
            apply_default_css=False,
            **options,
        )

    def postprocess(self, value: tuple[Pixels, Pixels] | None) -> dict[str, str]:  # type: ignore[override]
        """Both as data URIs."""
        return {} if value is None else {"before": to_uri(value[0]), "after": to_uri(value[1])}

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        return {
            "type": "object",
            "properties": {"before": {"type": "string"}, "after": {"type": "string"}},
            "description": "the picture as the model sees it and its reconstruction, as PNG data URIs",
        }


@dataclass(frozen=True)
class Film:
    """A loop: its frames (n, S, S, 3) for the page, and the file to keep."""

    frames: Pixels
    fps: float
    name: str
    data: bytes


class FlipBook(gr.HTML):
    """Plays a `Film`: one tall picture of all frames, moved by the style sheet, and a link to the file."""

    TEMPLATE = """
{{#if value.sheet}}<div class="flip" role="img" aria-label="A loop of {{value.frames}} frames"
style="--frames: {{value.frames}}; --seconds: {{value.seconds}}s"><img src="{{value.sheet}}" alt=""></div>
<p class="keep"><a download="{{value.name}}" href="{{value.src}}">Download {{value.name}}</a></p>
{{else}}<p class="empty">NOTE</p>{{/if}}"""

    def __init__(self, label: str, *, note: str, **options: Any) -> None:
        super().__init__(
            label=label,
            html_template=self.TEMPLATE.replace("NOTE", html.escape(note)),
            apply_default_css=False,
            **options,
        )

    def postprocess(self, value: Film | None) -> dict[str, Any]:  # type: ignore[override]
        """The frames as one PNG, the file as a data URI: neither is kept on the server."""
        if value is None:
            return {}
        count, kind = len(value.frames), value.name.rpartition(".")[2]
        mime = f"{'video' if kind == 'webm' else 'image'}/{kind}"
        return {
            "src": f"data:{mime};base64,{base64.b64encode(value.data).decode()}",
            "name": value.name,
            "sheet": to_uri(value.frames.reshape(-1, *value.frames.shape[2:])),
            "frames": count,
            "seconds": count / value.fps,
        }

    def api_info(self) -> dict[str, Any]:
        """What a client sees."""
        texts = {key: {"type": "string"} for key in ("src", "name", "sheet")}
        numbers = {key: {"type": "number"} for key in ("frames", "seconds")}
        return {"type": "object", "properties": texts | numbers, "description": "src: the file, as a data URI"}


def latent_chart(mu: NDArray[np.float32], kl: Sequence[float] | NDArray[np.float64]) -> str:
    """The latents that say most of this picture, as bars: their nats, the value of mu in the tip."""
    nats = np.asarray(kl)
    order = np.argsort(nats)[::-1][:BARS]
    top = max(float(nats[order[0]]), 1e-9)
    bars = "".join(
        f'<span style="height:{max(2.0, 100 * float(nats[i]) / top):.1f}%" title="z{i}: mu {mu[i]:+.2f}, '
        f'{nats[i]:.2f} nats"></span>'
        for i in order
    )
    return (
        f'<figure class="latents"><div role="img" aria-label="Nats of the {len(order)} strongest latents, '
        f'from {top:.2f} to {nats[order[-1]]:.2f}">{bars}</div><figcaption>The {len(order)} strongest of {len(nats)} '
        f"latents, by what each tells of this picture; the first tells {top:.1f} nats.</figcaption></figure>"
    )
