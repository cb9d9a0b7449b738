"""TrainConfig: every setting of a run, saved with it. The presets are its values, the command line is made from it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_runtime.errors import VAEError
from vae_train.data import AVATARS
from vae_train.errors import UsageError

CONFIG_FILE = "config.json"
CLASSIC_STRIDE = 32
"""Five stride-2 convolutions: the side of a picture must be a multiple of 2^5."""


def _setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings that decide what a run computes; where it computes and writes is not among them."""

    data: str = _setting(AVATARS, "avatars, a folder, a .zip or .tar of pictures, or hf:owner/name")
    preset: str = _setting("classic", "classic: 32x32, five stride-2 convolutions, sum of squared errors")
    epochs: int = _setting(36, "passes over the training pictures", 1, 1_000_000)
    image_size: int = _setting(32, "side of the pictures in pixels, a multiple of 32", 32, 512)
    latent_dim: int = _setting(128, "length of the code z", 1, 4096)
    batch_size: int = _setting(128, "pictures a step", 2, 65536)
    learning_rate: float = _setting(1e-3, "of Adam", 1e-8, 1.0)
    beta: float = _setting(1.0, "weight of the KL divergence", 0.0, 1e6)
    kl_warmup: int = _setting(200, "steps over which the weight of the KL divergence grows from 0", 0, 10_000_000)
    ema: float = _setting(
        0.999, "decay of the averaged weights, which are evaluated and exported; 0: no average", 0.0, 0.99999
    )
    avatars: int = _setting(8000, "faces to draw, for --data avatars", 64, 10_000_000)
    seed: int = _setting(0, "decides weights, order, noise and avatars", 0, 2**31 - 1)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"--preset {self.preset}: unknown, this version has {', '.join(PRESETS)}")
        for item in dataclasses.fields(self):
            low, high, value = item.metadata["low"], item.metadata["high"], getattr(self, item.name)
            if low is not None and not (math.isfinite(value) and low <= value <= high):
                raise UsageError(f"{option(item.name)} {value}: expected {low:g} to {high:g}")
        if self.image_size % CLASSIC_STRIDE:
            raise UsageError(
                f"--image-size {self.image_size}: the classic network halves the side five times, "
                f"so it must be a multiple of {CLASSIC_STRIDE}, such as 32, 64 or 96"
            )

    def to_json(self) -> str:
        """The text of a run's config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, run: Path) -> TrainConfig:
        """The settings of an existing run; UsageError if they cannot be read."""
        path = run / CONFIG_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except VAEError:
            raise
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path}: not the settings of a run of this version ({error})") from error


PRESETS: dict[str, dict[str, Any]] = {"classic": {}}
"""What each preset sets apart from the defaults of TrainConfig, which are the classic write-up's."""


def option(name: str) -> str:
    """The command-line option of a setting: image_size -> --image-size."""
    return "--" + name.replace("_", "-")


def make_config(given: dict[str, Any]) -> TrainConfig:
    """The settings of a new run: those of the preset, and over them the ones that were given."""
    preset = given.get("preset", TrainConfig.preset)
    return TrainConfig(**{**PRESETS.get(preset, {}), **given})


def resumed_config(run: Path, given: dict[str, Any]) -> TrainConfig:
    """The settings of the run in `run`, with more epochs if they are given; UsageError lists what else differs."""
    saved = TrainConfig.load(run)
    differing = [
        f"{option(name)} {value} (the run has {getattr(saved, name)})"
        for name, value in given.items()
        if name != "epochs" and value != getattr(saved, name)
    ]
    if differing:
        raise UsageError(f"--resume: {run} was made with other settings: {', '.join(differing)}")
    epochs = given.get("epochs", saved.epochs)
    if epochs < saved.epochs:
        raise UsageError(f"--epochs {epochs}: the run was made for {saved.epochs}, it can only be given more")
    return dataclasses.replace(saved, epochs=epochs)
