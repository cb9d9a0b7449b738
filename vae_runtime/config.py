"""`config.json`, the contract between trainer and runtime, as a frozen dataclass; and the file names of a model.

The reader is strict because a model folder may come from anywhere: missing or repeated keys, NaN, `true` for 1, and
files above 64 kB are refused with an error that names the key. Additional keys of the same format version are ignored.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from vae_runtime.errors import ConfigError, ModelFileError
from vae_runtime.files import write_atomically

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
# The files below are named in `ModelConfig.files`, each with its digest; a model without one of them has no such entry.
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
INVERSE_FILE = "inverse.onnx"
PRIOR_FILE = "prior.npz"
DIRECTIONS_FILE = "directions.npz"
ATTRIBUTES_FILE = "attributes.npz"
NEIGHBORS_FILE = "neighbours.npz"
GOLDEN_FILE = "golden.json"

LIKELIHOODS = ("mse", "gaussian")
Variant: TypeAlias = Literal["fp16", "int8"]
VARIANTS: tuple[Variant, ...] = ("fp16", "int8")
"""Smaller graphs that an export may have beside those in float32; see `graph_files`."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Valid names of a model and of the files beside it: never a path."""

# Keys of early files of this format that named a file; the name is fixed since, and `files` says whether it is there.
_FORMER_KEYS = {"prior": PRIOR_FILE, "directions": DIRECTIONS_FILE}
_MAX_BYTES = 64 * 1024
_MAX_DIGITS = 18
_SHA256 = re.compile(r"[0-9a-f]{64}")


def graph_files(variant: str | None = None) -> tuple[str, str]:
    """The names of encoder and decoder: ("encoder.onnx", ...) in float32, ("encoder.fp16.onnx", ...) of a variant."""
    if variant is None:
        return ENCODER_FILE, DECODER_FILE
    return f"encoder.{variant}.onnx", f"decoder.{variant}.onnx"


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a model was trained on."""

    name: str
    """The source as the trainer was given it, without its folder: `avatars`, `faces.zip`, `hf:owner/name`."""
    count: int
    """Pictures used for training, the held-out ones not counted."""
    sha256: str
    """Digest of the content of the source."""

    def __post_init__(self) -> None:
        # A folder's name need not be UTF-8, but this file and the graphs' metadata are.
        object.__setattr__(self, "name", self.name.encode("utf-8", "replace").decode())


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The description of a pair of graphs, as read by the runtime."""

    format_version: int = FORMAT_VERSION
    """Version of this file's format."""
    name: str
    """The model's short name."""
    image_size: int
    """Side S of the square pictures, in pixels."""
    channels: int = 3
    """Color channels: RGB."""
    latent_dim: int
    """Length of the code z."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Range of the pixels at both ends of both graphs."""
    opset: int
    """ONNX operator set of both graphs."""
    preset: str
    """The training preset that made it."""
    likelihood: str
    """`mse`: sum of squared errors on [0, 1] pixels; `gaussian`: Gaussian with the optimal variance."""
    beta: float
    """Weight of the KL divergence in the loss."""
    sigma: float
    """Standard deviation of a pixel around its reconstruction, fitted on held-out pictures, in [0, 1] units."""
    training_data: TrainingData
    """What it was trained on."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Held-out figures at export, by name."""
    model_id: str
    """Identifier of the weights, stored in both graphs: it ties the encoder to its decoder."""
    files: Mapping[str, str]
    """SHA-256 of each file beside this one, by file name. What is named here, the model has: prior.npz, directions.npz,
    inverse.onnx, or the two graphs of a variant. A copy of the model may lack graphs that are not opened."""

    def __post_init__(self) -> None:
        _check_version(self.format_version)
        _check(NAME.fullmatch(self.name) is not None, "name", self.name, "letters, digits, '.', '_', '-', at most 64")
        _check(8 <= self.image_size <= 1024, "image_size", self.image_size, "8 to 1024")
        _check(self.channels == 3, "channels", self.channels, "3")
        _check(1 <= self.latent_dim <= 65536, "latent_dim", self.latent_dim, "1 to 65536")
        _check(tuple(self.value_range) == (0.0, 1.0), "value_range", self.value_range, "[0, 1]")
        _check(1 <= self.opset <= 99, "opset", self.opset, "1 to 99")
        _check(self.likelihood in LIKELIHOODS, "likelihood", self.likelihood, " or ".join(LIKELIHOODS))
        _check(math.isfinite(self.beta) and self.beta >= 0, "beta", self.beta, "a finite number >= 0")
        _check(1e-6 <= self.sigma <= 1e3, "sigma", self.sigma, "1e-6 to 1000")  # its square neither 0 nor infinite
        _check(self.training_data.count >= 0, "training_data.count", self.training_data.count, ">= 0")
        _check(bool(self.model_id), "model_id", self.model_id, "a non-empty text")
        for name in (ENCODER_FILE, DECODER_FILE):
            _check(name in self.files, "files", sorted(self.files), f"an entry for {name}")
        for name, digest in self.files.items():
            _check(NAME.fullmatch(name) is not None, "files", name, "plain file names")
            _check(_SHA256.fullmatch(digest) is not None, f"files.{name}", digest, "64 hexadecimal digits")

    def to_dict(self) -> dict[str, Any]:
        """Plain builtins, in the order of the fields."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The text of config.json; the same config gives the same text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write `config.json` into `folder`, all or nothing, and return its path."""
        return write_atomically(Path(folder) / CONFIG_FILE, self.to_json())

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Parse the text of a config.json; `ConfigError` names the first invalid key."""
        fields = _parse(text)
        if isinstance(fields, dict):  # the version first: of another one, the keys may be others
            _check_version(_decode(int, fields.get("format_version"), "format_version"))
            files = fields.get("files")
            for key, file in _FORMER_KEYS.items():
                _check(fields.get(key) in (None, file), key, fields.get(key), file)
                named = isinstance(files, dict) and file in files
                _check(fields.get(key) is None or named, "files", "no entry", file)
        decoded: ModelConfig = _decode(cls, fields, "")
        return decoded

    @classmethod
    def load(cls, folder: str | Path) -> ModelConfig:
        """Read `folder/config.json`; `ModelFileError` if it cannot be read, `ConfigError` if it is invalid."""
        path = Path(folder) / CONFIG_FILE
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ModelFileError(
                f"{path}: cannot be read ({error.strerror}); give a folder that holds an exported model"
            ) from error
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes, not a config.json of this project")
        try:
            return cls.from_json(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


def _refuse(key: str, got: object, expected: str) -> NoReturn:
    shown = str(got)
    raise ConfigError(
        f"{key or 'config.json'}: got {shown[:60]}{'...' if len(shown) > 60 else ''}, expected {expected}"
    )


def _check(holds: bool, key: str, got: object, expected: str) -> None:
    if not holds:
        _refuse(key, got, expected)


def _check_version(version: int) -> None:
    if version > FORMAT_VERSION:
        _refuse("format_version", version, f"at most {FORMAT_VERSION}; update anime-vae to read this model")
    _check(version == FORMAT_VERSION, "format_version", version, str(FORMAT_VERSION))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        _refuse("", f"the key {max(keys, key=keys.count)} twice", "each key once")
    return dict(pairs)


def _integer(text: str) -> int:
    _check(len(text) <= _MAX_DIGITS, "number", text, f"at most {_MAX_DIGITS} digits")
    return int(text)


def _constant(text: str) -> NoReturn:
    _refuse("number", text, "a finite number")


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_constant)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"invalid JSON ({str(error)[:80]})") from error


def _decode(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind` says, or a ConfigError that names `key`; nothing is converted but int to float."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_object(kind, value, key)
    if origin is tuple:
        _check(isinstance(value, list) and len(value) == len(arguments), key, value, f"{len(arguments)} values")
        return tuple(_decode(item, part, key) for item, part in zip(arguments, value, strict=True))
    if origin is Mapping:
        _check(isinstance(value, dict), key, value, "an object")
        return {name: _decode(arguments[1], part, f"{key}.{name}") for name, part in value.items()}
    if kind is float and type(value) in (int, float):
        _check(math.isfinite(value), key, value, "a finite number")
        return float(value)
    _check(type(value) is kind, key, f"{type(value).__name__} {value!r}", kind.__name__)
    return value


def _decode_object(kind: type, value: Any, key: str) -> Any:
    _check(isinstance(value, dict), key, value, "an object")
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]
    missing = sorted(set(names) - value.keys())
    _check(not missing, key, f"no {', '.join(missing)}", "every key")
    prefix = f"{key}." if key else ""
    return kind(**{name: _decode(hints[name], value[name], prefix + name) for name in names})
