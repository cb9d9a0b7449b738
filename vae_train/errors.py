"""The errors of training, all of them subclasses of VAEError."""

from __future__ import annotations

from vae_runtime.errors import VAEError


class UsageError(VAEError, ValueError):
    """An invalid command line, found before any data or device is touched."""


class DataError(VAEError, ValueError):
    """A source of pictures that cannot be used."""


class CheckpointError(VAEError, OSError):
    """A checkpoint that is missing, unreadable, or of another model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint with damaged content."""


class TrainingError(VAEError, RuntimeError):
    """A run that cannot continue."""


class ExportError(VAEError, RuntimeError):
    """An export that failed, or whose graphs differ from the model; nothing is published."""


class MissingPackageError(VAEError, ImportError):
    """A package that training needs is not installed."""
