"""Whether a part of a face is where it belongs, as learned from real faces alone, without a label.

An eye, or a mouth, of aligned faces is nearly always at the same place, so that places alone can teach a small network
what it looks like, and what does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from vae_train.adversarial.features import resized
from vae_train.model.tensors import pick, to_unit

_GAIN = 0.12  # standard deviation of the logarithm of each color channel, while a network learns
_RATE = 2e-3

_SIDE = 64  # at which faces are searched, in pixels;
_FIELD = 20  # what is seen of them at each place,
_STRIDE = 2  # and the distance of places
_NEAR, _FAR = 3.0, 9.0  # places within so many pixels of the usual one are the part, those beyond the other are not
_BATCH = 64
STEPS = 400

MEASURED = 2000
"""Real faces that new ones are compared with."""
TYPICAL = 0.25
"""Share of them that are seen less clearly than what is asked of new ones."""

Generators = Callable[[int], torch.Generator]
"""The random numbers of a step."""


class PartFinder(nn.Module):
    """(n, 3, s, s) -> logits (n, m, m) that the center of a part is at a place: each sees `_FIELD` pixels, and nothing
    of where in the face they are."""

    def __init__(self, center: tuple[float, float], searched: tuple[slice, slice]) -> None:
        """center: the usual place in an aligned face, in widths and heights; its mirror image is another such place.
        searched: rows and columns of 64 in which `find` looks."""
        super().__init__()
        self.center, self.searched = center, searched
        widths = 24, 48, 64, 64, 64
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, _STRIDE), nn.SiLU()]
        for channels, width in itertools.pairwise(widths):
            layers += [nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(4 * image - 2)
        return logits[:, 0]

    def find(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The part of aligned faces (n, 3, S, S): how clearly it is seen, in nats (n,), and its center, in widths and
        heights (n, 2)."""
        rows, columns = self.searched
        logits = self(resized(image.float(), _SIDE)[:, :, rows, columns])
        shares = logits.detach().flatten(1).softmax(1).reshape(logits.shape)
        x, y = (_places(count, image.device) for count in (logits.shape[2], logits.shape[1]))
        center = torch.stack([columns.start + shares.sum(1) @ x, rows.start + shares.sum(2) @ y], 1)
        return logits.flatten(1).logsumexp(1), center / _SIDE

    def loss(self, image: Tensor) -> Tensor:
        """The cross-entropy of finding the part of aligned faces, (n, 3, 64, 64), at its usual places: ()"""
        logits = self(image)
        x = y = _places(logits.shape[1], image.device) / _SIDE
        apart = torch.minimum((x - self.center[0]).abs(), (x - 1 + self.center[0]).abs())
        distance = _SIDE * torch.hypot(apart[None, :], (y - self.center[1])[:, None])
        near, far = distance < _NEAR, distance > _FAR
        wanted, weight = near.float().expand_as(logits), 4.0 * near + far
        return functional.binary_cross_entropy_with_logits(logits, wanted, weight) / weight.mean()

    def fit(self, real: Tensor, make_generator: Generators, part: str) -> None:
        """Learn from real faces, uint8 (N, 3, S, S), in `STEPS` steps; then the network stays. part: what is learned,
        for the progress bar."""
        self.train().requires_grad_(True)
        for step, optimizer in learning(self, STEPS, f"learning what {part} looks like"):
            faces = some_faces(real, _BATCH, make_generator(step))
            update(optimizer, self.loss(resized(faces, _SIDE)))
        self.eval().requires_grad_(False)


def some_faces(real: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Some real faces in slightly other colors: uint8 (N, 3, S, S) -> (count, 3, S, S) in [0, 1]"""
    gain = torch.exp(_GAIN * normal((count, 3, 1, 1), generator))
    return (to_unit(pick(real, count, generator)) * gain).clamp(0, 1)


def learning(network: nn.Module, count: int, description: str) -> Iterator[tuple[int, torch.optim.AdamW]]:
    """The steps in which a network learns, and its optimizer, whose rate falls in the second half."""
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=0.01)
    for step in tqdm(range(count), desc=description, unit="step", disable=None):
        optimizer.param_groups[0]["lr"] = _RATE * min(1.0, 2 * (1 - step / count))
        yield step, optimizer


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of a loss, ()."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """N(0, 1), on the device of the generator."""
    return torch.randn(shape, generator=generator, device=generator.device)


def _places(count: int, device: torch.device) -> Tensor:
    """The middles of what is seen at each place of a row, in pixels: (count,)"""
    return _STRIDE * torch.arange(count, device=device, dtype=torch.float32) + _FIELD / 2
