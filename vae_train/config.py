"""TrainConfig: every setting of a run, saved with it. The command line is made from it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_runtime.config import ENCODER_FILE
from vae_runtime.errors import VAEError
from vae_runtime.hub import HUB_PREFIX
from vae_train.data.sources import AVATARS
from vae_train.errors import UsageError
from vae_train.model.presets import CLASSIC, DECODERS, PLAIN, PRESETS

CONFIG_FILE = "config.json"
STRIDE = 32
"""Five stride-2 convolutions: the side of a picture must be a multiple of 2^5."""


PRECISIONS = ("auto", "float32", "bfloat16")
LIKELIHOODS = ("mse", "gaussian")
SCHEDULES = ("constant", "cosine")


def _number(default: Any, help: str, low: float, high: float) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


def _choice(default: str, help: str, choices: tuple[str, ...]) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


def _other(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings that decide what a run computes, as opposed to where it computes and writes."""

    data: tuple[str, ...] = _other(
        (AVATARS,), "avatars, a folder, a .zip or .tar of pictures, or hf:owner/name; may be given several times"
    )
    labels: str = _other("", "a .csv or .jsonl file with a column file_name; its other columns are labels")
    init: str = _other("", "model to start from: an exported folder, hf:owner/name or a run; its sizes are kept")
    preset: str = _choice(
        CLASSIC.name, "; ".join(f"{preset.name}: {preset.summary}" for preset in PRESETS.values()), tuple(PRESETS)
    )
    batch_norm: bool = _other(True, "normalize in the networks; off: convolutions with biases, as in exported graphs")
    epochs: int = _number(36, "passes over the training pictures", 1, 1_000_000)
    image_size: int = _number(32, "side of the pictures in pixels, a multiple of 32", 32, 512)
    latent_dim: int = _number(128, "length of the code z", 1, 4096)
    decoder: str = _choice(PLAIN, "of base; fine: hidden channels at full size, a quarter slower", DECODERS)
    batch_size: int = _number(128, "pictures a step, those of all processes together", 2, 65536)
    learning_rate: float = _number(1e-3, "learning rate of Adam", 1e-8, 1.0)
    schedule: str = _choice("constant", "schedule of the learning rate; cosine: falls to 0 at the last step", SCHEDULES)
    warmup: int = _number(0, "steps over which the learning rate grows linearly from 0", 0, 10_000_000)
    clip: float = _number(0.0, "gradient norm clip; 0: off", 0.0, 1e9)
    likelihood: str = _choice(
        "mse", "reconstruction term: mse, the sum of squared errors; gaussian, with the optimal variance", LIKELIHOODS
    )
    beta: float = _number(1.0, "weight of the KL divergence", 0.0, 1e6)
    kl_warmup: int = _number(200, "steps over which the weight of the KL divergence grows from 0", 0, 10_000_000)
    sharpness: float = _number(
        0.0, "weight of the patch distance in the last quarter of a run, nats per color value", 0.0, 1e6
    )
    free_bits: float = _number(0.0, "nats of KL divergence per latent that are not penalized", 0.0, 100.0)
    ema: float = _number(0.999, "decay of the averaged weights, which are evaluated and exported; 0: off", 0.0, 0.99999)
    flip: bool = _other(False, "mirror pictures at random")
    shift: int = _number(0, "shift pictures at random by at most this many pixels", 0, 16)
    precision: str = _choice("auto", "of matrix products; auto: bfloat16 where the processor has it", PRECISIONS)
    patience: int = _number(
        0, "epochs without a better held-out loss after which a run stops, its best weights kept; 0: none", 0, 1_000_000
    )
    avatars: int = _number(8000, "number of faces to draw, for --data avatars", 64, 10_000_000)
    seed: int = _number(0, "seed of weights, order, augmentation, noise and avatars", 0, 2**31 - 1)

    def __post_init__(self) -> None:
        sources = (self.data,) if isinstance(self.data, str) else tuple(self.data)
        object.__setattr__(self, "data", sources)  # a list in JSON; one text in runs of earlier versions
        for item in dataclasses.fields(self):
            check_setting(item, getattr(self, item.name))
        if self.image_size % STRIDE:
            raise UsageError(
                f"--image-size {self.image_size}: the networks halve the side five times, "
                f"so it must be a multiple of {STRIDE}, such as 32, 64 or 96"
            )
        if self.decoder not in PRESETS[self.preset].decoders:
            having = " or ".join(name for name, preset in PRESETS.items() if self.decoder in preset.decoders)
            raise UsageError(f"--decoder {self.decoder}: the preset {self.preset} has no such decoder, {having} has")

    def to_json(self) -> str:
        """The text of a run's config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, run: Path) -> TrainConfig:
        """The settings of an existing run; UsageError if they cannot be read."""
        path = run / CONFIG_FILE
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(settings, dict) and "model_id" in settings:
                raise UsageError(f"{run}: an exported model without its {ENCODER_FILE}; export or download it again")
            return cls(**settings)
        except VAEError:
            raise
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"{path}: not the settings of a run of this version ({error})") from error


def check_setting(item: dataclasses.Field[Any], value: Any) -> None:
    """Raise UsageError unless `value` is one that the setting `item` may have."""
    several = isinstance(item.default, tuple)
    kind = str if several else type(item.default)
    if not (value and all(_is(each, kind) for each in value) if several else _is(value, kind)):
        raise UsageError(f"{option(item.name)} {value!r}: expected {'texts' if several else kind.__name__}")
    if "low" in item.metadata:
        low, high = item.metadata["low"], item.metadata["high"]
        if not (math.isfinite(value) and low <= value <= high):
            raise UsageError(f"{option(item.name)} {value}: expected {low:g} to {high:g}")
    elif "choices" in item.metadata and value not in item.metadata["choices"]:
        raise UsageError(f"{option(item.name)} {value}: expected {' or '.join(item.metadata['choices'])}")


def _is(value: Any, kind: type) -> bool:
    """Whether a value, as of JSON, is of a kind; an integer is a float, and a bool is neither."""
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def option(name: str) -> str:
    """The command-line option of a setting: image_size -> --image-size."""
    return "--" + name.replace("_", "-")


ARCHITECTURE = ("preset", "image_size", "latent_dim", "decoder", "batch_norm")
"""Settings that decide which weights a network has."""

FINE_TUNING: dict[str, Any] = {
    "learning_rate": 3e-4,
    "schedule": "cosine",
    "warmup": 20,
    "clip": 1000.0,
    "kl_warmup": 0,
    "sharpness": 0.0,
    "flip": True,
    "shift": 2,
}
"""Settings of a run that starts from a model (--init), instead of the preset's."""

_PASSES = 20_000  # approximate number of pictures that a fine-tuning run sees in all


def fine_tuning_length(pictures: int) -> dict[str, int]:
    """Settings of a fine-tuning run that follow from its number of training pictures."""
    epochs = min(100, max(3, round(_PASSES / max(1, pictures))))
    return {"epochs": epochs, "batch_size": min(32, max(2, pictures // 4)), "patience": max(3, epochs // 5)}


def make_config(given: dict[str, Any], initial: dict[str, Any] | None = None) -> TrainConfig:
    """The settings of a new run: those of the preset, overridden by those that were given.

    initial: settings of the model to start from, see `engine.initial`. UsageError if `given` contradicts its
    architecture.
    """
    if initial is None:
        preset = PRESETS.get(given.get("preset", TrainConfig.preset))
        return TrainConfig(**{**(preset.settings if preset else {}), **given})
    for name in ARCHITECTURE:
        if name in given and given[name] != initial[name]:
            raise UsageError(
                f"{option(name)} {given[name]}: {given['init']} has {initial[name]}, and --init keeps it; leave it out"
            )
    return TrainConfig(**{**PRESETS[initial["preset"]].settings, **FINE_TUNING, **initial, **given})


def absolute_sources(sources: Sequence[str]) -> tuple[str, ...]:
    """Sources with their paths made absolute, so that a run can be resumed from any working folder."""
    return tuple(
        source if source == AVATARS or source.startswith(HUB_PREFIX) else os.path.abspath(source) for source in sources
    )


def resumed_config(run: Path, given: dict[str, Any]) -> TrainConfig:
    """The settings of the run in `run`, with more epochs if they are given; UsageError lists what else differs.

    `data` and `labels` may differ: they say where the pictures and labels are now, and the content of the pictures
    decides whether they are the run's.
    """
    saved = TrainConfig.load(run)
    differing = [
        f"{option(name)} {value} (the run has {getattr(saved, name)})"
        for name, value in given.items()
        if name not in ("data", "labels", "epochs") and value not in (getattr(saved, name), "auto")
    ]
    if differing:
        raise UsageError(f"--resume: {run} was made with other settings: {', '.join(differing)}")
    epochs = given.get("epochs", saved.epochs)
    if epochs < saved.epochs:
        raise UsageError(f"--epochs {epochs}: the run was made for {saved.epochs}, it can only be given more")
    if epochs > saved.epochs and (saved.schedule == "cosine" or saved.sharpness):
        raise UsageError(
            f"--epochs {epochs}: with the cosine schedule, or with --sharpness, the number of epochs decides what each "
            "step does, so this run cannot be given more; start a new one"
        )
    where = {name: given[name] for name in ("data", "labels") if name in given}
    return dataclasses.replace(saved, epochs=epochs, **where)
