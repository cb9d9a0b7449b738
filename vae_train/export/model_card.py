"""README.md of an exported model, its Hugging Face model card: the text at export, and sections that commands add."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_runtime.attributes import Attributes
from vae_runtime.config import ATTRIBUTES_FILE, CARD_FILE, DIRECTIONS_FILE, PRIOR_FILE, ModelConfig
from vae_runtime.directions import Directions
from vae_runtime.errors import ModelFileError
from vae_runtime.files import write_atomically
from vae_runtime.hub import HUB_PREFIX
from vae_runtime.prior import Prior
from vae_train.adversarial.config import RefineConfig, numbers
from vae_train.config import TrainConfig, make_config, option
from vae_train.data.sources import AVATARS

CARD_FIGURES = ("samples.png", "interpolations.png", "reconstructions.png", "edits.png")
"""The figures of a card; see `vae_train.model.figures.draw_card`."""

_UNITS = {"negative_elbo": "nats", "reconstruction": "nats", "kl": "nats", "psnr": "dB"}


def training_time(records: list[dict[str, Any]], images: int) -> str:
    """ "24 minutes on CPU (AMD EPYC), 2 threads", from the lines of metrics.jsonl; empty where they do not say it.

    images: those of one epoch; a record may say itself, by "images", how many it and those before it had. The time for
    measuring, drawing and saving is not in it, nor that of a record without a speed, as that of a mean of runs.
    """
    where = list(dict.fromkeys(str(record["device"]) for record in records if "device" in record))
    if not where:
        return ""
    seconds, seen = 0.0, 0
    for record in records:
        count = record["images"] - seen if "images" in record else images
        seen += count
        if "images_per_second" in record:
            seconds += count / record["images_per_second"]
    spent = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    return f"{spent} on {', then '.join(where)}"


@dataclass(frozen=True)
class Statements:
    """What only the owner of a model can say; a card claims none of it by itself."""

    license: str | None = None
    """Of the weights, as the Hub writes it: "mit"."""
    data_license: str | None = None
    """Of the pictures, or under what terms they were used."""
    tags: tuple[str, ...] = ()
    """Further tags: "anime"."""


NO_STATEMENTS = Statements()


def model_card(
    config: ModelConfig,
    trained: TrainConfig,
    folder: Path,
    spent: str,
    statements: Statements = NO_STATEMENTS,
    refined: RefineConfig | None = None,
) -> str:
    """The text for the export in `folder`.

    spent: of `training_time`. statements: of the owner. refined: the settings of the second stage, if there was one.
    """
    data, size = config.training_data, config.image_size
    pictures = (
        "The faces were drawn by [python_avatars](https://pypi.org/project/python-avatars/) (MIT) and are free to use."
        if data.name == AVATARS
        else f"License of the pictures: {statements.data_license or 'not stated'}. None of them is shown or part of "
        "this folder."
    )
    license = f"license: {statements.license}\n" if statements.license else ""
    terms = f"License of the weights: {statements.license or 'not stated'}."
    made = refine_command(refined, data.name, trained.avatars) if refined else command(trained, data.name)
    tags = ", ".join(["vae", "variational-autoencoder", "onnx", "onnxruntime", *statements.tags])
    return f"""---
{license}library_name: anime-vae
pipeline_tag: unconditional-image-generation
tags: [{tags}]
---

# {config.name}

A convolutional variational autoencoder for {size}x{size} images, as two ONNX graphs (opset {config.opset}):
`encoder.onnx` (image -> mu, logvar) and `decoder.onnx` (z -> image), with z of {config.latent_dim} numbers;
`inverse.onnx` has the gradient of the decoder's squared error, for `invert`, `inpaint` and `upscale`. They run without
torch, and the same everywhere: Python, browser, servers.

![Samples from the prior](samples.png)

```python
from vae_runtime import VAE

vae = VAE.load("path/of/this/folder")
faces = vae.sample(16, rng=0)
```
{_learned(config, folder)}
![Interpolations between samples](interpolations.png)

![Avatars, and what the model makes of them](reconstructions.png)

![Along the named directions](edits.png)

## Training

{data.count} pictures of `{data.name}` (content {data.sha256[:16]}), preset `{config.preset}`, likelihood
`{config.likelihood}`, beta {config.beta:g}, seed {trained.seed}, model id `{config.model_id}`. {pictures}
{terms} {f"Training took {spent}. " if spent else ""}The command:

```bash
python -m vae_train {made}
```
{_second_stage(refined) if refined else ""}
## Figures

On the held-out 5 % of the same source, at the end of training. Nats are per image: the sum of squared errors, or a
Gaussian with the variance that fits best, plus the KL divergence. Bits per dimension are for 8-bit colors under that
Gaussian. PSNR is that of decode(mu).

{_figures(config)}

## Use and limits

The model knows images like those it was trained on, cropped and centered as they were, and reconstructs others as the
nearest such image. Fine detail is soft, because a reconstruction averages over what the code leaves open. The model
inherits the biases of its training data: what that shows often, samples show often. It is not suited to recognize or
to judge people.
"""


_SECOND_STAGE = """
This is the second stage: a projected GAN (Sauer et al. 2021) tuned the decoder on draws of the prior, so that new faces
look like faces. {prior}{encoder} Reconstructions lose some fidelity to what the model had that it began with.
"""
_PRIOR = "The flow of the prior learned with it (Grover et al. 2018). "
_ENCODER = {
    False: "The encoder is that of the model that it began with.",
    True: "At the end the encoder followed the decoder, so codes are not those of the model that it began with.",
}


def _second_stage(refined: RefineConfig) -> str:
    """What the card says of it."""
    return _SECOND_STAGE.format(prior=_PRIOR if refined.prior_images else "", encoder=_ENCODER[refined.follow > 0])


def refine_command(refined: RefineConfig, data: str, avatars: int) -> str:
    """The command of a second stage, with the settings that differ from the defaults. avatars: drawn, if they are the
    data."""
    changed = [f"--avatars {avatars}"] if data == AVATARS else []
    changed += [
        f"{option(item.name)} {_plain(getattr(refined, item.name))}"
        for item in numbers()
        if item.name == "images" or getattr(refined, item.name) != item.default
    ]
    return f"refine {shlex.quote(refined.start)} {_sources(data)} {' '.join(changed)}"


def _plain(value: float) -> str:
    """A number as an option takes it: a count is never 1e+06."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _sources(data: str) -> str:
    """--data for each of the sources that the name of a set joins."""
    return " ".join(f"--data {shlex.quote(source)}" for source in data.split(" + "))


def _learned(config: ModelConfig, folder: Path) -> str:
    """What the card says of the prior and of the directions."""
    parts = []
    if PRIOR_FILE in config.files:
        density = Prior.load(folder / PRIOR_FILE).kind
        parts.append(
            f"\n`sample` draws from `{PRIOR_FILE}`, {density} fitted to the codes of\n"
            'the training pictures (Ghosh et al. 2020); `sample(16, prior="unit")` from N(0, I).\n'
        )
    if DIRECTIONS_FILE in config.files:
        names = ", ".join(f"`{name}`" for name in Directions.load(folder / DIRECTIONS_FILE).names)
        parts.append(f"\n`edit(images, direction, strength)` knows, from `{DIRECTIONS_FILE}`: {names}.\n")
    if ATTRIBUTES_FILE in config.files:
        parts.append(_attributes(Attributes.load(folder / ATTRIBUTES_FILE)))
    return "".join(parts)


def _attributes(found: Attributes) -> str:
    """The columns, their values and how often the classifier is right on held-out pictures."""
    rows = [
        f"| `{column}` | {', '.join(values)} | {accuracy:.0%} |"
        for (column, values), accuracy in zip(found.values.items(), found.accuracy, strict=True)
    ]
    text = "\n`attributes(images)` gives probabilities, `sample(16, where={...})` draws faces that have them:\n\n"
    return text + "\n".join(["| attribute | values | held-out accuracy |", "|---|---|---|", *rows]) + "\n"


def _figures(config: ModelConfig) -> str:
    rows = ["| | |", "|---|---|"]
    for key, value in config.metrics.items():
        name = key.removeprefix("held_out_")
        rows.append(f"| {name.replace('_', ' ')} | {value:g} {_UNITS.get(name, '')}".rstrip() + " |")
    return "\n".join(rows)


def command(trained: TrainConfig, data: str) -> str:
    """The options that make a run like `trained`: its source, epochs and seed, and what its preset does not say."""
    preset = make_config({"preset": trained.preset})
    words = [f"--preset {trained.preset}"] if trained.preset != TrainConfig.preset else []
    for item in dataclasses.fields(trained):
        value = getattr(trained, item.name)
        if item.name == "init" and not value.startswith(HUB_PREFIX):
            value = Path(value).name  # not where it lay on this machine
        if item.name == "data":
            words.append(_sources(data))
        elif isinstance(value, bool) and value != getattr(preset, item.name):
            words.append(option(item.name) if value else option(f"no_{item.name}"))
        elif item.name in ("epochs", "seed") or value != getattr(preset, item.name):
            words.append(f"{option(item.name)} {value}")
    return " ".join(words)


def add_metrics(folder: Path, metrics: Mapping[str, float]) -> ModelConfig:
    """Add figures to `metrics` in the config.json of an exported model, and return the new config."""
    config = ModelConfig.load(folder)
    rounded = {name: round(value, 4) for name, value in metrics.items()}
    changed = dataclasses.replace(config, metrics={**config.metrics, **rounded})
    changed.save(folder)
    return changed


def write_section(folder: Path, command: str, text: str) -> Path:
    """Add a section to the card in `folder`, or replace the one that the same command wrote; an empty text removes it.

    command: "python -m vae_train evaluate"; comments around the section name it. Returns the card's path.
    Raises ModelFileError if there is no card.
    """
    path = folder / CARD_FILE
    try:
        card = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error}); give an exported model that has a card") from error
    start, end = f"<!-- written by {command} -->", f"<!-- end of {command} -->"
    earlier = re.compile(rf"\n*{re.escape(start)}.*?{re.escape(end)}\n*", re.DOTALL)
    section = f"\n\n{start}\n\n{text.strip()}\n\n{end}\n" if text.strip() else "\n"
    if earlier.search(card):
        before, after = earlier.split(card, maxsplit=1)
        card = before + section + (f"\n{after}" if after else "")
    else:
        card = card.rstrip("\n") + section
    return write_atomically(path, card)
