"""Whether the two eyes of a face belong together: what people look at first, and what the critic hardly sees.

A small network learns from real faces alone, by contrast, which of many right eyes is that of a left one (InfoNCE: van
den Oord, Li & Vinyals, "Representation learning with contrastive predictive coding", 2018, equation 4, in both
directions as in CLIP, Radford et al. 2021). As it sees each eye by itself, and no drawn picture while it learns, it can
compare them by nothing but color, size, gaze and style. Then it stays, and new faces have to satisfy it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from vae_train.model.tensors import to_unit

_CENTER = 0.34, 0.42  # of the left eye in an aligned face, in widths and heights; the other one is its mirror image
_WINDOW = 0.31  # what is seen of each, in widths
_SIDE = 24  # at which it is seen, in pixels
_SHIFT = 0.02  # standard deviations: of the center,
_ZOOM = 0.06  # of the logarithm of the window,
_GAIN = 0.12  # and, alike in both eyes, of the logarithm of each color channel
_WIDTH = 96
_BATCH = 192
_STEPS = 800
_RATE = 2e-3
_MEASURED = 2000  # real faces that new ones are compared with


class EyeMatcher(nn.Module):
    """(n, 3, S, S) aligned faces -> (n,) how alike their eyes are, from -1 to 1."""

    typical: Tensor
    """(): the median of real faces."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            *_block(3, 32, 2, nn.Identity()),
            *_block(32, 64, 1, nn.Identity()),
            *_block(64, 96, 2, nn.BatchNorm2d(96)),
            *_block(96, 128, 1, nn.BatchNorm2d(128)),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128 * (_SIDE // 8) ** 2, _WIDTH),
        )
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("typical", torch.tensor(1.0))

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """generator: of the small shifts and zooms of what is seen; None for none."""
        left, right = self.eyes(image, generator)
        return (left * right).sum(1)

    def eyes(self, image: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Both eyes of each face, as unit vectors (n, _WIDTH) each."""
        seen = torch.cat([_window(side, generator) for side in (image, image.flip(3))])
        left, right = functional.normalize(self.embed(4 * seen - 2), dim=1).chunk(2)
        return left, right

    def loss(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """By how much the eyes of new faces are less alike than is typical of real ones, in the mean: ()"""
        return functional.relu(self.typical - self(image, generator)).mean()

    def fit(self, real: Tensor, make_generator: Callable[[int], torch.Generator]) -> None:
        """Learn from real faces, uint8 (N, 3, S, S). make_generator: the random numbers of a step."""
        optimizer = torch.optim.AdamW(self.parameters(), _RATE, weight_decay=0.01)
        self.train().requires_grad_(True)
        for step in tqdm(range(_STEPS), desc="learning which eyes belong together", unit="step", disable=None):
            generator = make_generator(step)
            optimizer.param_groups[0]["lr"] = _RATE * min(1.0, 2 * (1 - step / _STEPS))
            chosen = torch.randint(0, len(real), (_BATCH,), generator=generator, device=real.device)
            gain = torch.exp(_GAIN * _normal((_BATCH, 3, 1, 1), generator))
            left, right = self.eyes((to_unit(real[chosen]) * gain).clamp(0, 1), generator)
            optimizer.zero_grad(set_to_none=True)
            contrast(left, right, self.log_scale.exp()).backward()
            optimizer.step()
        self.eval().requires_grad_(False)
        self.typical.copy_(self.likeness(real[:: max(1, len(real) // _MEASURED)]).median())

    @torch.no_grad()
    def likeness(self, pixels: Tensor) -> Tensor:
        """What `forward` says of any number of pictures, uint8 (n, 3, S, S): (n,)"""
        return torch.cat([self(to_unit(batch)) for batch in pixels.split(_BATCH)])


def contrast(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """The mean cross-entropy of finding the right one's row for each left one, and the other way round: ()"""
    scores, own = scale * left @ right.T, torch.arange(len(left), device=left.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


def _block(channels: int, width: int, stride: int, norm: nn.Module) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 2 + stride, stride, 1), norm, nn.SiLU()


def _window(image: Tensor, generator: torch.Generator | None) -> Tensor:
    """The left eye: (n, 3, S, S) -> (n, 3, _SIDE, _SIDE)"""
    count, device = len(image), image.device
    center, size = torch.tensor(_CENTER, device=device).repeat(count, 1), torch.full((count, 1), _WINDOW, device=device)
    if generator is not None:
        center = center + _SHIFT * _normal((count, 2), generator)
        size = size * torch.exp(_ZOOM * _normal((count, 1), generator))
    zeros = torch.zeros_like(size)
    shift = 2 * center - 1
    rows = torch.cat([size, zeros, shift[:, :1]], 1), torch.cat([zeros, size, shift[:, 1:]], 1)
    grid = functional.affine_grid(torch.stack(rows, 1), [count, 3, _SIDE, _SIDE], align_corners=False)
    return functional.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
