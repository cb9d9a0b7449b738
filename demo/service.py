"""What the demo does with a model, without a page: arrays from the inputs that strangers send."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from demo.components.mask_editor import Masked
from demo.components.sliders import SliderBoard, SliderGroup
from demo.evolution import Lineage, replay
from vae_runtime import VAE, InputError, kl_divergence, load_image
from vae_runtime.checks import Array, show_integer
from vae_runtime.figures import enlarge
from vae_runtime.images import Images, Pixels, psnr
from vae_runtime.latent import Method, analogy, grid, path

MAX_SEED = 2**31 - 1
MAX_FACES = 64
SIDE = 7
"""Rows and columns of the square between four faces."""
FRAMES = 24
"""Frames from one face of a loop to the next: two seconds at `FPS`."""
FPS = 12.0
MAX_STRENGTH = 3.0
"""Farthest that one slider goes, in standard deviations of the codes."""
MAX_STEPS = 300
"""Most steps of the search for a code: some seconds, during which others wait."""
OPEN_SLIDERS = 14
"""Sliders that are not folded away."""
MAX_NAME = 200
MAX_WHERE = 16
MAX_LEVEL = 127
"""Levels of a number of a face token, on each side of 0."""

EXAMPLES = Path(__file__).with_name("examples")
STARTERS_FILE = Path(__file__).with_name("starters.json")

_NUMBERED = re.compile(r"(pca|pc|principal|direction)[\s_-]*(\d+)", re.IGNORECASE)
_HEADINGS = {"hair": "Hair color", "eye": "Eye color", "eyes": "Eye color", "skin": "Skin"}
_TOKEN = re.compile(r"(?:[\w-]{4}){2,2048}(?:[\w-]{2,3})?", re.ASCII)  # no base64 is of 4k + 1 characters


@dataclass(frozen=True)
class Starters:
    """What a tab opens with: seeds chosen by `python -m demo.choose_starters`."""

    seed: int = 7
    """Of the new faces."""
    line: int = 7
    """Of the first generation."""
    faces: tuple[int, ...] = (11, 12, 13, 14)
    """Seeds of the faces to blend."""

    @classmethod
    def load(cls, name: str) -> Starters:
        """Those of the model of this name, or the defaults."""
        found = json.loads(STARTERS_FILE.read_text(encoding="utf-8")) if STARTERS_FILE.exists() else {}
        return cls(**{**found[name], "faces": tuple(found[name]["faces"])}) if name in found else cls()


@dataclass(frozen=True)
class Reconstruction:
    """A picture as the model sees it, and what comes back of it."""

    original: Pixels
    """(S, S, 3)"""
    face: Pixels
    """decode(mu), (S, S, 3)"""
    psnr: float
    """dB; infinite when both are equal."""
    mu: NDArray[np.float32]
    """(latent_dim,)"""
    kl: NDArray[np.float64]
    """Nats of each latent, (latent_dim,)."""


class Service:
    """A model behind the tabs of the page. It keeps nothing of a visitor between calls."""

    def __init__(self, vae: VAE) -> None:
        """Collect the model's directions: its own, or those along which its pictures change most."""
        self.vae = vae
        self.starters = Starters.load(vae.config.name)
        if vae.directions is None:
            self.directions = {f"direction-{n}": step for n, step in enumerate(strongest(vae, 8), 1)}
        else:
            self.directions = {name: vae.direction(name) for name in vae.directions.names}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.vae.config.name

    def codes(self, images: Images) -> Array:
        """mu of each picture, (n, latent_dim)."""
        return self.vae.encode(images)[0]

    @cached_property
    def starter_codes(self) -> Array:
        """Codes of the faces to begin with, (n, latent_dim)."""
        return np.concatenate([self.vae.prior.sample(1, rng=seed) for seed in self.starters.faces])

    @cached_property
    def starter_faces(self) -> Pixels:
        """Faces to begin with, (n, S, S, 3)."""
        return self.vae.decode(self.starter_codes)

    @cached_property
    def examples(self) -> Pixels:
        """Drawn faces of the kind that the model knows, which it has not seen: (n, side, side, 3)."""
        kind = "avatars" if self.vae.config.training_data.name == "avatars" else "anime"
        return np.stack([load_image(path) for path in sorted(EXAMPLES.glob(f"{kind}-*.png"))])

    @cached_property
    def example_faces(self) -> Pixels:
        """`examples` as the model sees them, (n, S, S, 3)."""
        return self.vae.prepare(self.examples)

    @cached_property
    def analogy_faces(self) -> Pixels:
        """A, B and C to begin with: A is B moved along the first direction, (3, S, S, 3)."""
        _, b, _, c = self.example_faces[:4]
        first = next(iter(self.directions))
        return np.stack([self.edit(b, {first: 2.0}), b, c])

    def is_starter(self, picture: Pixels) -> bool:
        """Whether a tab opens with this picture, or shows it as an example."""
        sets = (self.starter_faces, self.examples, self.example_faces, self.analogy_faces)
        return any(
            picture.shape == faces.shape[1:] and bool((faces == picture).all(axis=(1, 2, 3)).any()) for faces in sets
        )

    @property
    def choices(self) -> list[tuple[str, str]]:
        """What new faces can be limited to: ("Hair: blue", "hair=blue") and so on; none without classifiers."""
        found = self.vae.classifiers.values if self.vae.classifiers is not None else {}
        return [
            (f"{title(column)}: {value}", f"{column}={value}") for column, values in found.items() for value in values
        ]

    def sample(
        self, faces: object, seed: object, temperature: object = 1.0, prior: object = "model", where: object = ()
    ) -> Pixels:
        """`faces` new faces, 1 to 64: (n, S, S, 3), the same for the same seed.

        where: attributes that they shall have, as ["hair=blue"]; the last one of a column counts.
        """
        count, start = check_int(faces, "faces", 1, MAX_FACES), check_int(seed, "seed", 0, MAX_SEED)
        warmth = check_number(temperature, "temperature", 0, 2)
        if prior not in ("model", "unit"):
            raise InputError("prior: expected model or unit")
        source: Literal["model", "unit"] = "unit" if prior == "unit" else "model"
        return self.vae.sample(count, rng=start, temperature=warmth, prior=source, where=check_where(where))

    def reconstruct(self, picture: Pixels) -> Reconstruction:
        """Encode and decode one picture, with the figures of what was lost."""
        original = self.vae.prepare(picture)
        mu, logvar = self.vae.encode(original)
        face = self.vae.decode(mu)[0]
        kl = kl_divergence(mu[0][:, None], logvar[0][:, None])
        return Reconstruction(original[0], face, float(psnr(original[0], face)), mu[0], kl)

    def invert(self, picture: Pixels, steps: object = 200) -> tuple[Pixels, Pixels]:
        """The picture as the model sees it, and its reconstruction from the code that fits best: (S, S, 3) each."""
        original = self.vae.prepare(picture)
        found = self.vae.decode(self.vae.invert(original, steps=check_int(steps, "steps", 1, MAX_STEPS)))
        return original[0], found[0]

    def blend(self, pictures: Sequence[Pixels] | Pixels, steps: object = 8, method: object = "slerp") -> Pixels:
        """From each of two to four pictures to the next, `steps` faces a pair: (n, S, S, 3)."""
        keys = self._keys(pictures)
        return self.vae.decode(path(keys, check_int(steps, "steps", 2, 16) - 1, check_method(method)))

    def square(self, pictures: Sequence[Pixels] | Pixels, method: object = "slerp") -> Pixels | None:
        """The 7 x 7 faces between four pictures in its corners, (49, S, S, 3); None for fewer than four pictures."""
        if len(pictures) != 4:
            return None
        return self.vae.decode(grid(self._keys(pictures), SIDE, SIDE, check_method(method)).reshape(SIDE * SIDE, -1))

    def loop(self, pictures: Sequence[Pixels] | Pixels, method: object = "slerp") -> Pixels:
        """A walk through the pictures and back to the first, `FRAMES` a pair: (n, S, S, 3)."""
        return self.vae.decode(path(self._keys(pictures), FRAMES, check_method(method), closed=True))

    def _keys(self, pictures: Sequence[Pixels] | Pixels) -> Array:
        if not 2 <= len(pictures) <= 4:
            raise InputError(f"faces: got {len(pictures)}, expected two to four")
        return self.codes(pictures)

    def edit(self, picture: Pixels, strengths: Mapping[str, object]) -> Pixels:
        """decode(mu + sum of strength times direction), each strength from -3 to 3: (S, S, 3)."""
        checked = self.check_strengths(strengths)
        code = self.codes(picture)[0]
        for name, strength in checked.items():
            code = code + strength * self.directions[name]
        face: Pixels = self.vae.decode(code)[0]
        return face

    def check_strengths(self, strengths: object) -> dict[str, float]:
        """Strengths by name; InputError for an unknown direction or a strength beyond 3."""
        if not isinstance(strengths, Mapping):
            raise InputError('strengths: expected an object of numbers by name, {"smile": 1.5}')
        for name in strengths:
            if name not in self.directions:
                raise InputError(f"strengths: got {str(name)[:40]!r}, this model has {', '.join(self.directions)}")
        return {name: check_number(value, name, -MAX_STRENGTH, MAX_STRENGTH) for name, value in strengths.items()}

    def board(self, strengths: Mapping[str, float] | None = None) -> SliderBoard:
        """The sliders in groups, the first ones open: what people see first, numbered directions last."""
        groups: dict[str, list[tuple[str, str]]] = {"Look": []}
        numbered: list[tuple[str, str]] = []
        for name in self.directions:
            prefix, _, rest = name.replace("_", "-").partition("-")
            if match := _NUMBERED.fullmatch(name):
                numbered.append((name, f"Direction {match[2]}"))
            elif rest and prefix.lower() in _HEADINGS:
                groups.setdefault(_HEADINGS[prefix.lower()], []).append((name, title(rest)))
            else:
                groups["Look"].append((name, title(name)))
        found, shown = [], 0
        for heading, names in groups.items():
            if names:
                folded = shown > 0 and shown + len(names) > OPEN_SLIDERS
                found.append(SliderGroup(heading, tuple(names), folded))
                shown += 0 if folded else len(names)
        if numbered:
            found.append(SliderGroup("More: what the model found by itself", tuple(numbered), folded=shown > 0))
        return SliderBoard(found, dict(strengths or {}))

    def analogy(self, a: Pixels, b: Pixels, c: Pixels) -> Pixels:
        """What `a` has over `b`, given to `c`: (S, S, 3)."""
        face: Pixels = self.vae.decode(analogy(*self.codes([a, b, c])))[0]
        return face

    @property
    def can_invert(self) -> bool:
        """Whether the model has the graph that inverting and inpainting need."""
        return self.vae.has_inverse

    def fit(self, given: Masked) -> Masked:
        """A picture and its mask, (H, W, 3) and (H, W), as the model sees them: (S, S, 3) and (S, S)."""
        pixels, hidden = self.vae.prepare_masked(given.face, given.hidden if given.hidden.any() else None)
        return Masked(pixels[0], hidden[0])

    def inpaint(self, picture: Pixels, hidden: NDArray[np.bool_], steps: object = 200) -> Pixels:
        """The picture with what is hidden (H, W) painted anew, the rest of it as it was: (S, S, 3)."""
        taken = check_int(steps, "steps", 1, MAX_STEPS)
        if not hidden.any():
            raise InputError("mask: hides nothing; paint over the part of the face that should be drawn anew")
        if hidden.all():
            raise InputError("mask: hides the whole face; leave some of it for the model to go by")
        face: Pixels = self.vae.inpaint(picture, hidden, taken)[0]
        return face

    def evolve(self, lineage: Lineage) -> Pixels:
        """The sixteen faces of the youngest generation: (16, S, S, 3)."""
        return self.vae.decode(replay(self.vae.prior, lineage))

    def faces_of(self, text: object) -> Pixels | None:
        """The face of a name, (1, S, S, 3); None for a blank one."""
        if not isinstance(text, str) or len(text) > MAX_NAME:
            raise InputError(f"text: expected a text of at most {MAX_NAME} characters")
        return self.vae.face_of(text)[None] if text.strip() else None

    def token(self, picture: Pixels) -> str:
        """A picture's code as text for a link: 8 bits a number, after their scale as float32."""
        code = self.codes(picture)[0]
        scale = np.float32(max(float(np.abs(code).max()), 1e-6) / MAX_LEVEL)
        data = scale.astype("<f4").tobytes() + np.rint(code / scale).astype(np.int8).tobytes()
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    def face_of_token(self, token: object) -> Pixels:
        """The face (S, S, 3) of a token; InputError for one of another model, or none at all."""
        text = token if isinstance(token, str) and _TOKEN.fullmatch(token) else ""
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if len(data) != 4 + self.vae.latent_dim:
            raise InputError("face: expected a token of this model")
        code = np.frombuffer(data, np.int8, offset=4) * np.frombuffer(data, "<f4", 1)
        face: Pixels = self.vae.decode(code)[0]
        return face


def strongest(vae: VAE, count: int, samples: int = 512) -> NDArray[np.float32]:
    """The directions along which the picture changes most, (count, latent_dim), for a model that names none.

    Pictures are regressed on whitened codes from the prior; the singular vectors of that linear map are the answer.
    Each is as long as the standard deviation of the codes along it, and makes the picture brighter.
    """
    codes = vae.prior.sample(samples, rng=0).astype(np.float64)
    pictures = vae.decode(codes).reshape(samples, -1).astype(np.float64)
    codes, pictures = codes - codes.mean(axis=0), pictures - pictures.mean(axis=0)
    factor = np.linalg.cholesky(codes.T @ codes / samples + 1e-9 * np.eye(vae.latent_dim))
    response = np.linalg.solve(factor, codes.T @ pictures)
    strength, turns = np.linalg.eigh(response @ response.T)
    best = turns[:, np.argsort(strength)[::-1][:count]]
    best = best * np.where(best.T @ response.sum(axis=1) < 0, -1, 1)
    return np.asarray(best.T @ factor.T, np.float32)


def enlarged(faces: Pixels, side: int) -> Pixels:
    """Faces (n, S, S, 3) at (n, side, side, 3) by Lanczos, as the page shows them."""
    return np.stack([enlarge(face, side, side) for face in faces])


def check_number(value: object, name: str, low: float, high: float) -> float:
    """`value` as a finite float from `low` to `high`; InputError for anything else, including booleans and text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name}: expected a number from {low:g} to {high:g}")
    if not low <= value <= high:  # NaN is never between
        shown = f"{value:.10g}" if isinstance(value, float) else show_integer(value)
        raise InputError(f"{name}: got {shown}, expected {low:g} to {high:g}")
    return float(value)


def check_int(value: object, name: str, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`; 7.0 is 7, as sliders send it, and 7.5 is an InputError."""
    number = check_number(value, name, low, high)
    if number != int(number):
        raise InputError(f"{name}: got {number:g}, expected an integer")
    return int(number)


def check_where(where: object) -> dict[str, str] | None:
    """["hair=blue"] as {"hair": "blue"}, None for an empty list; InputError for anything else."""
    if where is None or where == "":
        return None
    if not isinstance(where, (list, tuple)) or len(where) > MAX_WHERE or not all(isinstance(x, str) for x in where):
        raise InputError('where: expected a list of column=value, ["hair=blue"]')
    pairs = [text.partition("=") for text in where]
    if not all(column and equals and value for column, equals, value in pairs):
        raise InputError('where: expected column=value, as "hair=blue"')
    return {column: value for column, _, value in pairs} or None


def check_method(method: object) -> Method:
    """`method` as "slerp" or "lerp"; InputError for anything else."""
    if method == "slerp":
        return "slerp"
    if method == "lerp":
        return "lerp"
    raise InputError("method: expected slerp or lerp")


def title(name: str) -> str:
    """ "dark-brown" as "Dark brown"."""
    words = name.replace("_", " ").replace("-", " ").strip()
    return words[:1].upper() + words[1:]
