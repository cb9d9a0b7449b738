"""Whether both eyes of a face are there and belong together: what people look at first, and the critic hardly sees.

Two small networks learn it from real faces alone. One finds eyes. The other learns, by contrast, which of many right
eyes is that of a left one (InfoNCE: van den Oord, Li & Vinyals, "Representation learning with contrastive predictive
coding", 2018, equation 4, in both directions as in CLIP, Radford et al. 2021). As it sees each eye by itself, and no
drawn picture while it learns, it can compare them by nothing but color, size, gaze and style.
Then both stay, and new faces have to satisfy them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_train.adversarial.finder import (
    MEASURED,
    STEPS,
    TYPICAL,
    Generators,
    PartFinder,
    learning,
    normal,
    some_faces,
    update,
)
from vae_train.model.tensors import thinned, to_unit

_CENTER = 0.34, 0.42  # of the left eye in an aligned face, in widths and heights; the other one is its mirror image
_SEARCHED = slice(4, 50), slice(0, 42)  # rows and columns in which the left one is searched
_CLEARLY = 0.5  # weight of how clearly eyes are seen, in nats

_WINDOW = 0.31  # what the matcher sees of each eye, in widths
_SIDE = 24  # at which it is seen, in pixels
_SHIFT = 0.02  # standard deviations: of the center,
_ZOOM = 0.06  # of the logarithm of the window
_WIDTH = 96
_BATCH = 192
_STEPS = 800


class EyeMatcher(nn.Module):
    """Windows onto eyes (n, 3, _SIDE, _SIDE) -> unit vectors (n, _WIDTH), alike where eyes belong together."""

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

    def forward(self, window: Tensor) -> Tensor:
        return functional.normalize(self.embed(4 * window - 2), dim=1)


class Eyes(nn.Module):
    """(n, 3, S, S) aligned faces -> how clearly the less clear one of their eyes is seen, in nats, and how alike both
    are, from -1 to 1: (n,) each."""

    clear: Tensor
    """(): what the less clear eye of three of four real faces reaches."""
    typical: Tensor
    """(): the median likeness of those of real faces."""

    def __init__(self) -> None:
        super().__init__()
        self.finder = PartFinder(_CENTER, _SEARCHED)
        self.matcher = EyeMatcher()
        self.register_buffer("clear", torch.tensor(0.0))
        self.register_buffer("typical", torch.tensor(1.0))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        seen, (left, right) = self._look(image, None)
        return seen.amin(0), (left * right).sum(1)

    def loss(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """By how much the eyes of new faces are less clear than those of real ones, and less alike: ()"""
        seen, (left, right) = self._look(image, generator)
        unlike = functional.relu(self.typical - (left * right).sum(1)).mean()
        return unlike + _CLEARLY * functional.relu(self.clear - seen).mean()

    def fit(self, real: Tensor, make_generator: Generators) -> None:
        """Learn from real faces, uint8 (N, 3, S, S)."""
        self.finder.fit(real, make_generator, "an eye")
        self.matcher.train().requires_grad_(True)
        for step, optimizer in learning(self.matcher, _STEPS, "learning which eyes belong together"):
            generator = make_generator(STEPS + step)
            _, (left, right) = self._look(some_faces(real, _BATCH, generator), generator)
            update(optimizer, contrast(left, right, self.matcher.log_scale.exp()))
        self.eval().requires_grad_(False)
        seen, alike = self.measure(thinned(real, MEASURED))
        self.clear.copy_(seen.quantile(TYPICAL))
        self.typical.copy_(alike.median())

    @torch.no_grad()
    def measure(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` says of any number of pictures, uint8 (n, 3, S, S): (n,) each"""
        seen, alike = zip(*(self(to_unit(batch)) for batch in pixels.split(_BATCH)), strict=True)
        return torch.cat(seen), torch.cat(alike)

    def _look(self, image: Tensor, generator: torch.Generator | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """How clearly both eyes are seen, (2, n), and what the matcher makes of each, (n, _WIDTH). generator: of the
        small shifts and zooms of what it sees; None for none."""
        seen, windows = [], []
        for side in (image, image.flip(3)):
            clearness, center = self.finder.find(side)
            seen.append(clearness)
            windows.append(_window(side, center, generator))
        left, right = self.matcher(torch.cat(windows)).chunk(2)
        return torch.stack(seen), (left, right)


def contrast(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """The mean cross-entropy of finding the right one's row for each left one, and the other way round: ()"""
    scores, own = scale * left @ right.T, torch.arange(len(left), device=left.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


def _block(channels: int, width: int, stride: int, norm: nn.Module) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 2 + stride, stride, 1), norm, nn.SiLU()


def _window(image: Tensor, center: Tensor, generator: torch.Generator | None) -> Tensor:
    """An eye of each face: (n, 3, S, S), (n, 2) -> (n, 3, _SIDE, _SIDE)"""
    count = len(image)
    size = torch.full((count, 1), _WINDOW, device=image.device)
    if generator is not None:
        center = center + _SHIFT * normal((count, 2), generator)
        size = size * torch.exp(_ZOOM * normal((count, 1), generator))
    zeros = torch.zeros_like(size)
    shift = 2 * center - 1
    rows = torch.cat([size, zeros, shift[:, :1]], 1), torch.cat([zeros, size, shift[:, 1:]], 1)
    grid = functional.affine_grid(torch.stack(rows, 1), [count, 3, _SIDE, _SIDE], align_corners=False)
    return functional.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)
