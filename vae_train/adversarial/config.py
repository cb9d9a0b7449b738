"""RefineConfig: the settings of a second stage, saved with its run beside those of the networks."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_train.config import check_setting
from vae_train.errors import UsageError

REFINE_FILE = "refine.json"


def _number(default: float, help: str, low: float, high: float) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """What decides how the decoder is tuned. Defaults: the values with which the shipped models were made."""

    start: str = field(default="", metadata={"help": "name of the model that the run began with"})
    images: int = _number(300_000, "new faces to draw in all", 1, 1_000_000_000)
    batch_size: int = _number(16, "new faces a step, and as many real ones", 2, 4096)
    learning_rate: float = _number(2e-4, "learning rate of the decoder's Adam", 1e-8, 1.0)
    critic_rate: float = _number(5e-4, "learning rate of the critic's Adam", 1e-8, 1.0)
    fidelity: float = _number(3000.0, "weight of the squared error of reconstructions", 0.0, 1e9)
    features: float = _number(0.5, "weight of the feature distance of reconstructions", 0.0, 1e6)
    spectrum: float = _number(0.3, "weight of the distance of power spectra", 0.0, 1e6)
    moments: float = _number(40.0, "weight of the distance of means and variances of features", 0.0, 1e6)
    pixels: float = _number(0.0, "weight of the mean picture among the moments", 0.0, 1e6)
    eyes: float = _number(0.0, "weight of how clear and how alike both eyes are; for aligned faces", 0.0, 1e6)
    mouth: float = _number(0.0, "weight of how clear the mouth is; for aligned faces", 0.0, 1e6)
    noise: float = _number(0.03, "deviation of the noise on what the critic sees; for flat drawings", 0.0, 1.0)
    prior_images: int = _number(0, "new faces at the start, with which the prior learns, too", 0, 1_000_000_000)
    prior_rate: float = _number(1e-3, "learning rate of the prior's Adam", 1e-8, 1.0)
    likelihood: float = _number(0.05, "weight of the density, while it learns, of what it drew before", 0.0, 1e6)
    reach: float = _number(5.0, "weight of how far its codes go astray, while it learns", 0.0, 1e6)
    widen: float = _number(1.0, "widths of the prior's Gaussians, in those at the start", 0.1, 10.0)
    average: int = _number(10_000, "half-life of the averaged weights, in pictures", 1, 1_000_000_000)
    decay: float = _number(0.0, "last part, over which the decoder's learning rate falls to a tenth", 0.0, 1.0)
    settle: int = _number(0, "new faces after these, with which moments alone count", 0, 1_000_000_000)
    settle_rate: float = _number(3e-6, "learning rate of that part, which falls to 0", 1e-8, 1.0)
    follow: int = _number(60_000, "pictures at the end, on which the encoder follows the decoder", 0, 1_000_000_000)
    side: int = _number(128, "side at which the feature network sees the pictures, a multiple of 32", 32, 512)
    seed: int = _number(0, "seed of draws, pictures and noise", 0, 2**31 - 1)

    def __post_init__(self) -> None:
        for item in numbers():
            check_setting(item, getattr(self, item.name))
        if self.side % 32:
            raise UsageError(f"--side {self.side}: expected a multiple of 32")

    @property
    def weights(self) -> dict[str, float]:
        """Of the decoder's losses, by name."""
        return {
            "generator_loss": 1.0,
            "squared_error": self.fidelity,
            "feature_distance": self.features,
            "spectrum_distance": self.spectrum,
            "moment_distance": self.moments,
            "eye_distance": self.eyes,
            "mouth_distance": self.mouth,
            "code_nll": self.likelihood,
            "code_excess": self.reach,
        }

    @property
    def adversarial_steps(self) -> int:
        """Steps in which a critic judges new faces."""
        return math.ceil(self.images / self.batch_size)

    @property
    def drawing_steps(self) -> int:
        """Steps until the decoder is done: the adversarial ones, and those in which it settles."""
        return self.adversarial_steps + math.ceil(self.settle / self.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.drawing_steps + math.ceil(self.follow / self.batch_size)

    def rate(self, images: int) -> float:
        """The share of the decoder's learning rate at a point of the run: 1, then falling linearly to a tenth."""
        left = (self.images - images) / (self.images * self.decay) if self.decay else 1.0
        return 0.1 + 0.9 * min(1.0, max(0.0, left))

    def to_json(self) -> str:
        """The text of a run's refine.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, run: Path) -> RefineConfig:
        """The settings of an existing run; UsageError if they cannot be read."""
        path = run / REFINE_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"{path}: not the settings of a second stage of this version ({error})") from error


def numbers() -> list[dataclasses.Field[Any]]:
    """The settings that the command line takes."""
    return [item for item in dataclasses.fields(RefineConfig) if "low" in item.metadata]
