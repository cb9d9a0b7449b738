"""Errors of this project: one root class, and each subclass is also a fitting builtin."""

from __future__ import annotations


class VAEError(Exception):
    """Base class of all errors that this project raises on purpose."""


class ImageError(VAEError, ValueError):
    """A picture that cannot be read, or is refused before it is decoded."""


class ImageNotFoundError(ImageError, FileNotFoundError):
    """The path of a picture does not exist."""


class ImagePermissionError(ImageError, PermissionError):
    """No permission to read the file of a picture."""


class InputError(VAEError, ValueError):
    """An array, code, seed or number of the wrong shape, type or range."""


class InputTypeError(VAEError, TypeError):
    """An argument of an unsupported type."""


class ImageArrayError(ImageError, InputError):
    """An array that is not a picture: not uint8, or not of the shape (H, W, 3)."""


class ImageTypeError(ImageError, InputTypeError):
    """An object that is not a picture, nor its path, bytes or file object."""


class ConfigError(VAEError, ValueError):
    """An invalid config.json, or one of a newer format."""


class ModelFileError(VAEError, OSError):
    """A file of a model that is missing, damaged or of another export."""


class HubError(VAEError, OSError):
    """A repository of the Hugging Face Hub that cannot be fetched."""


class DeviceError(VAEError, RuntimeError):
    """A device that was requested by name and is not available."""


class RuntimeMissingError(VAEError, ImportError):
    """An optional package that this call needs is not installed."""


class DeviceWarning(UserWarning):
    """`device="auto"` runs on the CPU; the message names the cause and the remedy."""
