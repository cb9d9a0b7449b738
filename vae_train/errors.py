"""The errors of training, all of them subclasses of VAEError."""

from __future__ import annotations

from vae_runtime.errors import VAEError


class UsageError(VAEError, ValueError):
    """A command line that cannot work, found before any data or device is touched."""


class DataError(VAEError, ValueError):
    """A source of pictures that cannot be used."""


class CheckpointError(VAEError, OSError):
    """A checkpoint that is missing, unreadable, or of another model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose content is not what was written."""


class TrainingError(VAEError, RuntimeError):
    """A run that cannot go on."""


class ExportError(VAEError, RuntimeError):
    """An export that was not published, because it failed or its graphs disagree with the model."""


class MissingPackageError(VAEError, ImportError):
    """A package that training needs is not installed."""
