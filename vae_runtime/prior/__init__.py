"""The density p(z) that new faces are drawn from."""

from vae_runtime.prior.flow import Flow
from vae_runtime.prior.mixture import Codes, Prior, sample_prior

__all__ = ["Codes", "Flow", "Prior", "sample_prior"]
