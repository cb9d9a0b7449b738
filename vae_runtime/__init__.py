"""Play an exported VAE with NumPy and ONNX Runtime: no torch.

>>> from vae_runtime import VAE
>>> vae = VAE.load()
>>> faces = vae.sample(16, rng=0)
"""

from vae_runtime.config import ModelConfig
from vae_runtime.errors import (
    ConfigError,
    DeviceError,
    DeviceWarning,
    ImageError,
    InputError,
    ModelFileError,
    VAEError,
)
from vae_runtime.images import load_image
from vae_runtime.latent import interpolate, kl_divergence, lerp, reparameterize, slerp
from vae_runtime.model import VAE

__all__ = [
    "VAE",
    "ConfigError",
    "DeviceError",
    "DeviceWarning",
    "ImageError",
    "InputError",
    "ModelConfig",
    "ModelFileError",
    "VAEError",
    "interpolate",
    "kl_divergence",
    "lerp",
    "load_image",
    "reparameterize",
    "slerp",
]
__version__ = "0.1.0"
