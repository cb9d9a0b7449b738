"""The prior p(z) that new faces are sampled from."""

from vae_runtime.prior.fitting import fit_prior
from vae_runtime.prior.flow import Flow
from vae_runtime.prior.mixture import Codes, Prior, sample_prior
from vae_runtime.prior.text_codes import text_code

__all__ = ["Codes", "Flow", "Prior", "fit_prior", "sample_prior", "text_code"]
