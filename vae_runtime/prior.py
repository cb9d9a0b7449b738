"""Where z comes from when no picture is given: the prior p(z).

Every model of format 1 is trained against the unit Gaussian N(0, I) and is sampled from it.
"""

from __future__ import annotations

import math
import numbers

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError, InputTypeError
from vae_runtime.latent import Rng, check_count, make_rng

MAX_SAMPLES = 1_000_000
"""Most codes that one call draws."""


def sample_prior(n: int, latent_dim: int, rng: Rng = None, temperature: float = 1.0) -> NDArray[np.float32]:
    """`n` draws of z ~ N(0, temperature^2 I), float32 (n, latent_dim).

    temperature: 0 to 10. Below 1 the faces are more alike and cleaner, at 0 all are decode(0).
    The same seed gives the same bits.
    """
    count = check_count(n, "n", 0, MAX_SAMPLES)
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real):
        raise InputTypeError(f"temperature: got {temperature!r}, expected a number from 0 to 10")
    scale = float(temperature)
    if not (math.isfinite(scale) and 0 <= scale <= 10):
        raise InputError(f"temperature: got {scale}, expected 0 to 10")
    return (scale * make_rng(rng).standard_normal((count, latent_dim))).astype(np.float32)
