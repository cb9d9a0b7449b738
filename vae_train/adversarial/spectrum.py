"""The spectrum of new faces is that of real ones.

Decoders that double the size leave patterns of alternating pixels and noise in the colors, which the feature network
hardly sees (Durall, Keuper & Keuper, "Watch your up-convolution: CNN based generative deep neural networks are failing
to reproduce spectral distributions", 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vae_train.model.tensors import thinned, to_unit

_COMPARED = 2400  # real pictures that the spectrum is measured on
_YCBCR = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))  # of RGB, ITU-R BT.601


def log_spectrum(image: Tensor) -> Tensor:
    """(n, 3, S, S) -> (3, S/8, S/8): the logarithm of the mean power of luma and of both chromas, each over 4x4
    frequencies, from low to high along rows and columns."""
    planes = torch.einsum("nchw,pc->nphw", image.float(), torch.tensor(_YCBCR, device=image.device))
    power = torch.fft.rfft2(planes).abs().square().mean(0)  # rows: 0 ... S/2 and back, columns: 0 ... S/2
    half = power.shape[-1]
    power = (power[:, 1:half] + power[:, half - 1 :].flip(1)) / 2
    return torch.log(functional.avg_pool2d(power[..., 1:], 4) + 1e-6)


def mean_spectrum(real: Tensor, batch_size: int) -> Tensor:
    """The mean `log_spectrum` of some batches of real pictures, uint8 (N, 3, S, S), as large as those of a step."""
    some = thinned(real, _COMPARED)
    return torch.stack([log_spectrum(to_unit(batch)) for batch in some.split(batch_size)]).mean(0)


def spectrum_distance(drawn: Tensor, real: Tensor) -> Tensor:
    """Squared differences of logarithms of power: summed over the frequencies, and the mean of luma and both chromas.
    drawn: (n, 3, S, S); real: by `log_spectrum`."""
    return (log_spectrum(drawn) - real).square().sum((1, 2)).mean()
