"""The project's errors: one root, and each class is also the builtin that a caller would expect."""

from __future__ import annotations


class VAEError(Exception):
    """Root of every error that this project raises on purpose."""


class ImageError(VAEError, ValueError):
    """A picture that cannot be read, or that is refused before it is decoded."""


class ImageNotFoundError(ImageError, FileNotFoundError):
    """The path of a picture leads nowhere."""


class ImagePermissionError(ImageError, PermissionError):
    """The file of a picture may not be read."""


class InputError(VAEError, ValueError):
    """An array, latent, seed or number with the wrong shape, kind or range."""


class InputTypeError(VAEError, TypeError):
    """An argument of a type that the function does not take."""


class ImageArrayError(ImageError, InputError):
    """An array that is no picture: another type than uint8, or another shape than (H, W, 3)."""


class ImageTypeError(ImageError, InputTypeError):
    """An object that is no picture, nor the path or the bytes of one."""


class ConfigError(VAEError, ValueError):
    """A config.json that is not exactly what this version writes."""


class ModelFileError(VAEError, OSError):
    """A model folder whose files are missing, damaged or not from one export."""


class HubError(VAEError, OSError):
    """A repository of the Hugging Face Hub that cannot be fetched."""


class DeviceError(VAEError, RuntimeError):
    """A device that was asked for by name and cannot be had."""


class RuntimeMissingError(VAEError, ImportError):
    """An optional package that this call needs is not installed."""


class DeviceWarning(UserWarning):
    """`device="auto"` runs on the CPU; the text names the cause and the remedy."""
