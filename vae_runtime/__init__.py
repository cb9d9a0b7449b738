"""Run an exported VAE with NumPy and ONNX Runtime, without torch.

>>> from vae_runtime import VAE
>>> vae = VAE.load()
>>> faces = vae.sample(16, rng=0)
"""

from vae_runtime.attributes import Attributes
from vae_runtime.config import ModelConfig
from vae_runtime.directions import Directions, Neighbors
from vae_runtime.errors import (
    ConfigError,
    DeviceError,
    DeviceWarning,
    HubError,
    ImageArrayError,
    ImageError,
    ImageNotFoundError,
    ImagePermissionError,
    ImageTypeError,
    InputError,
    InputTypeError,
    ModelFileError,
    RuntimeMissingError,
    VAEError,
)
from vae_runtime.figures import image_grid, save_animation, save_png
from vae_runtime.images import fit_square, load_image
from vae_runtime.latent import analogy, grid, interpolate, kl_divergence, lerp, path, reparameterize, slerp, traverse
from vae_runtime.latent_analysis import attribute_direction, nearest, pca_directions, percentile
from vae_runtime.model import VAE
from vae_runtime.picture_files import find_images
from vae_runtime.prior import Prior
from vae_runtime.stream import CodesFile, open_codes, read_names

__all__ = [
    "VAE",
    "Attributes",
    "CodesFile",
    "ConfigError",
    "DeviceError",
    "DeviceWarning",
    "Directions",
    "HubError",
    "ImageArrayError",
    "ImageError",
    "ImageNotFoundError",
    "ImagePermissionError",
    "ImageTypeError",
    "InputError",
    "InputTypeError",
    "ModelConfig",
    "ModelFileError",
    "Neighbors",
    "Prior",
    "RuntimeMissingError",
    "VAEError",
    "analogy",
    "attribute_direction",
    "find_images",
    "fit_square",
    "grid",
    "image_grid",
    "interpolate",
    "kl_divergence",
    "lerp",
    "load_image",
    "nearest",
    "open_codes",
    "path",
    "pca_directions",
    "percentile",
    "read_names",
    "reparameterize",
    "save_animation",
    "save_png",
    "slerp",
    "traverse",
]
__version__ = "0.1.0"
