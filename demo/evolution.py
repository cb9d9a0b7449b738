"""Faces bred by eye: a lineage is a short text, from which every generation is drawn again. Nothing is stored."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae_runtime import InputError
from vae_runtime.prior import Prior

SIZE = 16
"""Faces of a generation."""
MAX_GENERATIONS = 100

_TEXT = re.compile(r"(\d{1,10})((?:-\d{1,2}(?:\.\d{1,2}){0,15}x\d{1,3})*)", re.ASCII)


@dataclass(frozen=True)
class Lineage:
    """A seed, and for each later generation the parents that were picked (0 to 15) and the mutation (0 to 100 %).

    As text: "7-3.5x40-1x20" is seed 7, then children of faces 3 and 5 at 40 %, then children of face 1 at 20 %.
    """

    seed: int
    steps: tuple[tuple[tuple[int, ...], int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Lineage:
        """The lineage of a text; InputError for anything that `str` does not write."""
        match = _TEXT.fullmatch(text) if isinstance(text, str) and len(text) < 8192 else None
        if match is None:
            raise InputError("lineage: expected a text like 7-3.5x40: a seed, then picks and the mutation in percent")
        steps = []
        for step in match[2].split("-")[1:]:
            picks, _, mutation = step.partition("x")
            steps.append((tuple(map(int, picks.split("."))), int(mutation)))
        lineage = cls(int(match[1]), tuple(steps))
        if len(steps) > MAX_GENERATIONS:
            raise InputError(f"lineage: {len(steps)} generations, the most are {MAX_GENERATIONS}; start a new line")
        if any(mutation > 100 or max(picks) >= SIZE for picks, mutation in steps):
            raise InputError(f"lineage: expected picks from 0 to {SIZE - 1} and mutations from 0 to 100")
        return lineage

    def __str__(self) -> str:
        return str(self.seed) + "".join(f"-{'.'.join(map(str, picks))}x{change}" for picks, change in self.steps)

    def child(self, picks: tuple[int, ...], mutation: int) -> Lineage:
        """The lineage with one generation more; InputError without a pick, or after too many generations."""
        if not picks:
            raise InputError("pick the faces you like first: their children come next")
        return Lineage.parse(str(Lineage(self.seed, (*self.steps, (tuple(sorted(set(picks))), mutation)))))


def replay(prior: Prior, lineage: Lineage) -> NDArray[np.float32]:
    """The codes of the youngest generation, (16, latent_dim).

    Each number of a child comes from one of two parents. Then the child is turned towards a fresh draw from the prior,
    mean + cos(t) (child - mean) + sin(t) (draw - mean), which keeps the prior's mean and spread (Cotter et al. 2013).
    """
    rng = np.random.default_rng(lineage.seed)
    codes = prior.sample(SIZE, rng)
    mean = prior.center
    for picks, mutation in lineage.steps:
        pairs = rng.choice(picks, (2, SIZE))
        children = np.where(rng.random((SIZE, prior.latent_dim)) < 0.5, codes[pairs[0]], codes[pairs[1]])
        angle = mutation / 100 * math.pi / 2
        turned = math.cos(angle) * (children - mean) + math.sin(angle) * (prior.sample(SIZE, rng) - mean)
        codes = np.asarray(mean + turned, np.float32)
    return codes
