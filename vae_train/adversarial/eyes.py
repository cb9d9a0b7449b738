"""Whether both eyes of a face are there and belong together: what people look at first, and the critic hardly sees.

Two small networks learn it from real faces alone. One finds eyes: that of aligned faces are nearly always at the same
places, so that it can learn from places alone what an eye looks like, and what does not. The other learns, by contrast,
which of many right eyes is that of a left one (InfoNCE: van den Oord, Li & Vinyals, "Representation learning with
contrastive predictive coding", 2018, equation 4, in both directions as in CLIP, Radford et al. 2021). As it sees each
eye by itself, and no drawn picture while it learns, it can compare them by nothing but color, size, gaze and style.
Then both stay, and new faces have to satisfy them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from vae_train.adversarial.features import resized
from vae_train.model.tensors import pick, thinned, to_unit

_CENTER = 0.34, 0.42  # of the left eye in an aligned face, in widths and heights; the other one is its mirror image
_GAIN = 0.12  # standard deviation of the logarithm of each color channel, while both networks learn
_BATCH = 192
_RATE = 2e-3

_FOUND_SIDE = 64  # at which faces are searched, in pixels;
_FIELD = 20  # what is seen of them at each place,
_STRIDE = 2  # and the distance of places
_SEARCHED = slice(4, 50), slice(0, 42)  # rows and columns in which the left eye is searched
_NEAR, _FAR = 3.0, 9.0  # places within so many pixels of an eye's usual place are eyes, those beyond the other are not
_FOUND_BATCH = 64
_FOUND_STEPS = 400
_CLEARLY = 0.5  # weight of how clearly eyes are seen, in nats

_WINDOW = 0.31  # what the matcher sees of each eye, in widths
_SIDE = 24  # at which it is seen, in pixels
_SHIFT = 0.02  # standard deviations: of the center,
_ZOOM = 0.06  # of the logarithm of the window
_WIDTH = 96
_STEPS = 800
_MEASURED = 2000  # real faces that new ones are compared with


class EyeFinder(nn.Module):
    """(n, 3, s, s) -> logits (n, m, m) that the center of an eye is at a place: each sees `_FIELD` pixels, and nothing
    of where in the face they are."""

    def __init__(self) -> None:
        super().__init__()
        widths = 24, 48, 64, 64, 64
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, _STRIDE), nn.SiLU()]
        for channels, width in itertools.pairwise(widths):
            layers += [nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(4 * image - 2)
        return logits[:, 0]

    def find(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The left eye of aligned faces (n, 3, S, S): how clearly it is seen, in nats (n,), and its center, in widths
        and heights (n, 2)."""
        image = image.float()
        rows, columns = _SEARCHED
        logits = self(resized(image, _FOUND_SIDE)[:, :, rows, columns])
        shares = logits.detach().flatten(1).softmax(1).reshape(logits.shape)
        x, y = (_places(count, image.device) for count in (logits.shape[2], logits.shape[1]))
        center = torch.stack([columns.start + shares.sum(1) @ x, rows.start + shares.sum(2) @ y], 1)
        return logits.flatten(1).logsumexp(1), center / _FOUND_SIDE

    def loss(self, image: Tensor) -> Tensor:
        """The cross-entropy of finding both eyes of aligned faces, (n, 3, 64, 64), at their usual places: ()"""
        logits = self(image)
        x = y = _places(logits.shape[1], image.device) / _FOUND_SIDE
        apart = torch.minimum((x - _CENTER[0]).abs(), (x - 1 + _CENTER[0]).abs())
        distance = _FOUND_SIDE * torch.hypot(apart[None, :], (y - _CENTER[1])[:, None])
        near, far = distance < _NEAR, distance > _FAR
        wanted, weight = near.float().expand_as(logits), 4.0 * near + far
        return functional.binary_cross_entropy_with_logits(logits, wanted, weight) / weight.mean()


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
        self.finder = EyeFinder()
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

    def fit(self, real: Tensor, make_generator: Callable[[int], torch.Generator]) -> None:
        """Learn from real faces, uint8 (N, 3, S, S). make_generator: the random numbers of a step."""
        self.train().requires_grad_(True)
        for step, optimizer in _steps(self.finder, _FOUND_STEPS, "learning what eyes look like"):
            faces = _some(real, _FOUND_BATCH, make_generator(step))
            _update(optimizer, self.finder.loss(resized(faces, _FOUND_SIDE)))
        self.finder.eval().requires_grad_(False)
        for step, optimizer in _steps(self.matcher, _STEPS, "learning which eyes belong together"):
            generator = make_generator(_FOUND_STEPS + step)
            _, (left, right) = self._look(_some(real, _BATCH, generator), generator)
            _update(optimizer, contrast(left, right, self.matcher.log_scale.exp()))
        self.eval().requires_grad_(False)
        seen, alike = self.measure(thinned(real, _MEASURED))
        self.clear.copy_(seen.quantile(0.25))
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


def _places(count: int, device: torch.device) -> Tensor:
    """The middles of what is seen at each place of a row, in pixels: (count,)"""
    return _STRIDE * torch.arange(count, device=device, dtype=torch.float32) + _FIELD / 2


def _window(image: Tensor, center: Tensor, generator: torch.Generator | None) -> Tensor:
    """An eye of each face: (n, 3, S, S), (n, 2) -> (n, 3, _SIDE, _SIDE)"""
    count = len(image)
    size = torch.full((count, 1), _WINDOW, device=image.device)
    if generator is not None:
        center = center + _SHIFT * _normal((count, 2), generator)
        size = size * torch.exp(_ZOOM * _normal((count, 1), generator))
    zeros = torch.zeros_like(size)
    shift = 2 * center - 1
    rows = torch.cat([size, zeros, shift[:, :1]], 1), torch.cat([zeros, size, shift[:, 1:]], 1)
    grid = functional.affine_grid(torch.stack(rows, 1), [count, 3, _SIDE, _SIDE], align_corners=False)
    return functional.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)


def _some(real: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Some real faces in slightly other colors: uint8 (N, 3, S, S) -> (count, 3, S, S) in [0, 1]"""
    return (to_unit(pick(real, count, generator)) * torch.exp(_GAIN * _normal((count, 3, 1, 1), generator))).clamp(0, 1)


def _steps(network: nn.Module, count: int, description: str) -> Iterator[tuple[int, torch.optim.AdamW]]:
    """The steps in which a network learns, and its optimizer, whose rate falls in the second half."""
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=0.01)
    for step in tqdm(range(count), desc=description, unit="step", disable=None):
        optimizer.param_groups[0]["lr"] = _RATE * min(1.0, 2 * (1 - step / count))
        yield step, optimizer


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
