"""What the demo does with a model, without a page: each tab's answer as arrays, from inputs that strangers send."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from demo.evolution import Lineage, replay
from vae_runtime import VAE, InputError, kl_divergence
from vae_runtime.checks import Array
from vae_runtime.images import Images, Pixels
from vae_runtime.latent import Method, analogy, grid, path

MAX_SEED = 2**31 - 1
MAX_FACES = 64
SIDE = 7
"""Rows and columns of the square between four faces."""
FRAMES = 24
"""Frames from one face of a loop to the next: two seconds at `FPS`."""
FPS = 12.0
STRONG, NAMED = 8, 24
"""Most sliders of each kind; the avatars' labels alone make 22 directions."""
STRENGTH = 3.0
"""Farthest that one slider goes, in standard deviations of the codes."""

STEPS = 300
"""Most steps of the search for a code: some seconds, for others wait."""

_MAIN = re.compile(r"(pca|pc|principal|direction)[\s_-]*\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Slider:
    """One way to change a face: its label, and the step of strength 1, (latent_dim,)."""

    label: str
    step: NDArray[np.float32]


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


class Studio:
    """A model behind the verbs of the page. It keeps nothing between calls, so visitors cannot meet in it."""

    def __init__(self, vae: VAE) -> None:
        """Find the model's sliders: its own directions, else those that move the picture most."""
        self.vae = vae
        names = vae.directions.names if vae.directions is not None else ()
        found = [Slider(_title(name), vae.direction(name)) for name in names]
        main = [slider.step for slider, name in zip(found, names, strict=True) if _MAIN.fullmatch(name)]
        self.named = [slider for slider, name in zip(found, names, strict=True) if not _MAIN.fullmatch(name)][:NAMED]
        steps = main[:STRONG] or strongest(vae, STRONG)
        self.strong = [Slider(f"Direction {number}", step) for number, step in enumerate(steps, 1)]

    def codes(self, images: Images) -> Array:
        """mu of each picture, (n, latent_dim)."""
        return self.vae.encode(images)[0]

    def sample(self, count: int, seed: int, temperature: float = 1.0, prior: str = "model") -> Pixels:
        """`count` new faces, 1 to 64: (count, S, S, 3), the same for the same seed."""
        number, start = whole(count, "faces", 1, MAX_FACES), whole(seed, "seed", 0, MAX_SEED)
        source: Literal["model", "unit"] = "unit" if prior == "unit" else "model"
        return self.vae.sample(number, rng=start, temperature=real(temperature, "temperature", 0, 2), prior=source)

    def reconstruct(self, picture: Pixels) -> Reconstruction:
        """encode and decode one picture, and say what was lost."""
        original = self.vae.prepare(picture)
        mu, logvar = self.vae.encode(original)
        face = self.vae.decode(mu)[0]
        kl = kl_divergence(mu[0][:, None], logvar[0][:, None])
        return Reconstruction(original[0], face, psnr(original[0], face), mu[0], kl)

    def strip(self, pictures: Sequence[Pixels] | Pixels, steps: int = 8, method: Method = "slerp") -> Pixels:
        """From each of two to four pictures to the next, `steps` faces a pair: (n, S, S, 3)."""
        keys = self._keys(pictures)
        return self.vae.decode(path(keys, whole(steps, "steps", 2, 16) - 1, way(method)))

    def square(self, pictures: Sequence[Pixels] | Pixels, method: Method = "slerp") -> Pixels:
        """The 7 x 7 faces between four pictures in its corners, (49, S, S, 3); none for fewer than four pictures."""
        keys = self._keys(pictures)
        if len(keys) < 4:
            return np.empty((0, self.vae.image_size, self.vae.image_size, 3), np.uint8)
        return self.vae.decode(grid(keys, SIDE, SIDE, way(method)).reshape(SIDE * SIDE, -1))

    def loop(self, pictures: Sequence[Pixels] | Pixels, method: Method = "slerp") -> Pixels:
        """A walk through the pictures and back to the first, `FRAMES` a pair: (n, S, S, 3)."""
        return self.vae.decode(path(self._keys(pictures), FRAMES, way(method), closed=True))

    def _keys(self, pictures: Sequence[Pixels] | Pixels) -> Array:
        if not 2 <= len(pictures) <= 4:
            raise InputError(f"got {len(pictures)} faces, expected two to four")
        return self.codes(pictures)

    def edit(self, picture: Pixels, strengths: Sequence[float]) -> Pixels:
        """decode(mu + sum of strength times step), a strength for each of `strong` and then of `named`: (S, S, 3)."""
        code = self.codes(picture)[0]
        for slider, strength in zip([*self.strong, *self.named], strengths, strict=False):
            code = code + real(strength, slider.label, -STRENGTH, STRENGTH) * slider.step
        face: Pixels = self.vae.decode(code)[0]
        return face

    def analogy(self, a: Pixels, b: Pixels, c: Pixels) -> Pixels:
        """What `a` has over `b`, given to `c`: (S, S, 3)."""
        face: Pixels = self.vae.decode(analogy(*self.codes([a, b, c])))[0]
        return face

    @property
    def can_invert(self) -> bool:
        """Whether the model brought the graph that inverting and inpainting need."""
        return self.vae.has_inverse

    def inpaint(self, picture: Pixels, hidden: NDArray[np.bool_], steps: int = 200) -> Pixels:
        """The picture with what is hidden (H, W) painted anew, the rest of it as it was: (S, S, 3)."""
        if not hidden.any():
            raise InputError("paint over a part of the face first: the model fills it anew")
        face: Pixels = self.vae.inpaint(picture, hidden, whole(steps, "steps", 1, STEPS))[0]
        return face

    def invert(self, picture: Pixels, steps: int = 200) -> Pixels:
        """The picture, its reconstruction by the encoder, and that by the code that was searched: (3, S, S, 3)."""
        original = self.vae.prepare(picture)
        found = self.vae.decode(self.vae.invert(original, steps=whole(steps, "steps", 1, STEPS)))
        return np.concatenate([original, self.vae.reconstruct(original), found])

    def evolve(self, lineage: Lineage) -> Pixels:
        """The sixteen faces of the youngest generation: (16, S, S, 3)."""
        return self.vae.decode(replay(self.vae.prior, lineage))


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


def psnr(first: Pixels, second: Pixels) -> float:
    """Peak signal to noise ratio of two pictures in dB; infinite when they are equal."""
    error = float(np.square(first.astype(np.float64) / 255 - second.astype(np.float64) / 255).mean())
    return -10 * math.log10(error) if error else math.inf


def real(value: object, name: str, low: float, high: float) -> float:
    """`value` as a finite float from `low` to `high`; InputError for anything else, booleans and texts included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name}: expected a number from {low:g} to {high:g}")
    if not low <= value <= high:  # NaN is never between
        raise InputError(f"{name}: got {value:.10g}, expected {low:g} to {high:g}")
    return float(value)


def whole(value: object, name: str, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`; 7.0 is 7, as sliders send it, and 7.5 is an InputError."""
    number = real(value, name, low, high)
    if number != int(number):
        raise InputError(f"{name}: got {number:g}, expected a whole number")
    return int(number)


def way(method: str) -> Method:
    """`method` as "slerp" or "lerp"; InputError for anything else."""
    if method == "slerp":
        return "slerp"
    if method == "lerp":
        return "lerp"
    raise InputError("method: expected slerp or lerp")


def _title(name: str) -> str:
    words = name.replace("_", " ").replace("-", " ").strip()
    return words[:1].upper() + words[1:]
