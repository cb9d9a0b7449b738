"""The gradient graph of a decoder against torch's autograd and finite differences, and NumPy's Adam against torch's."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_model import DIM, SIZE, build_model

from vae_runtime import VAE, ModelConfig
from vae_runtime.errors import ModelFileError
from vae_runtime.inversion import adam
from vae_runtime.ort.verify import graph_summary
from vae_train.__main__ import main
from vae_train.errors import ExportError
from vae_train.export import decoder_gradient as inverse
from vae_train.export.agreement import check_gradient
from vae_train.export.onnx_graph import to_onnx
from vae_train.model.networks import Decoder

SIDE, CODE = 32, 6


def make(preset: str) -> tuple[Decoder, onnx.ModelProto]:
    """A decoder whose BatchNorms have statistics of their own, and its graph."""
    torch.manual_seed(0)
    decoder = Decoder(SIDE, CODE, preset)
    with torch.no_grad():
        decoder.train()(torch.randn(64, CODE))
    decoder.eval()
    return decoder, to_onnx(decoder, torch.zeros(2, CODE), "z", ["image"])


@pytest.fixture(scope="module", params=["classic", "base"])
def pair(request):
    return make(request.param)


def inputs(batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((batch, CODE), np.float32)
    return z, rng.random((batch, 3, SIDE, SIDE), np.float32), rng.random((batch, 1, SIDE, SIDE), np.float32)


def feed(z, image, weight):
    return {"z": z, "image": image, "weight": weight}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_loss_and_gradient_are_those_of_torch(pair, batch):
    decoder, graph = pair
    z, image, weight = inputs(batch)
    code = torch.from_numpy(z).requires_grad_()
    loss = (torch.from_numpy(weight) * (decoder(code) - torch.from_numpy(image)) ** 2).sum((1, 2, 3))
    loss.sum().backward()
    import onnxruntime

    session = onnxruntime.InferenceSession(
        inverse.gradient_graph(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    got_loss, got_gradient = session.run(["loss", "gradient"], feed(z, image, weight))
    np.testing.assert_allclose(got_loss, loss.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(got_gradient, code.grad.numpy(), rtol=1e-5, atol=1e-5 * code.grad.abs().max().item())


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences(pair):
    """In float64, by ONNX's own reference implementation: central differences of the loss, one latent at a time."""
    _, graph = pair
    run = ReferenceEvaluator(_doubled(inverse.gradient_graph(graph)))
    z, image, weight = (part.astype(np.float64) for part in inputs(1))
    (gradient,) = run.run(["gradient"], feed(z, image, weight))
    step = 1e-6
    for latent in range(CODE):
        shift = step * np.eye(CODE)[latent]
        up, down = (run.run(["loss"], feed(z + sign * shift, image, weight))[0] for sign in (1, -1))
        assert gradient[0, latent] == pytest.approx((up - down)[0] / (2 * step), rel=1e-5, abs=1e-6)


def _doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float64."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def test_the_graph_is_plain_and_shares_its_weights(pair):
    _, decoder = pair
    graph = inverse.gradient_graph(decoder)
    data = graph.SerializeToString(deterministic=True)
    assert len(data) < len(decoder.SerializeToString()) + 10_000
    assert graph_summary(data, "inverse.onnx").opset == 20  # made of allowed operators only, or it raises
    ports = {
        port.name: [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
        for port in (*graph.graph.input, *graph.graph.output)
    }
    code, picture = ["batch", CODE], ["batch", 3, SIDE, SIDE]
    one = ["batch", 1, SIDE, SIDE]
    assert ports == {"z": code, "image": picture, "weight": one, "loss": ["batch"], "gradient": code}
    assert inverse.gradient_graph(decoder).SerializeToString(deterministic=True) == data


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (9, {"strides": [2, 2], "kernel_shape": [4, 4], "pads": [1, 1, 1, 1]}),
        (8, {"strides": [3, 2], "kernel_shape": [3, 2], "pads": [0, 1, 2, 0]}),
        (10, {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        (8, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": 3}),
    ],
)
def test_convolutions_of_any_geometry(size, settings):
    """Rows and columns that a stride leaves over, uneven padding, dilation, groups: against torch."""
    rng = np.random.default_rng(0)
    group = settings.get("group", 1)
    kernel = rng.standard_normal((3, 3 // group, *settings["kernel_shape"]), np.float32)
    weight = rng.standard_normal((4, 3 * size * size), np.float32)
    nodes = [
        helper.make_node("MatMul", ["z", "v"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["view"]),
        helper.make_node("LeakyRelu", ["view"], ["active"], alpha=0.1),
        helper.make_node("Conv", ["active", "k"], ["image"], **settings),
    ]
    top, left, bottom, right = settings["pads"]

    def torch_decoder(z):
        view = torch.nn.functional.leaky_relu((z @ torch.from_numpy(weight)).reshape(-1, 3, size, size), 0.1)
        padded = torch.nn.functional.pad(view, (left, right, top, bottom))
        given = {"stride": settings.get("strides", 1), "dilation": settings.get("dilations", 1), "groups": group}
        return torch.nn.functional.conv2d(padded, torch.from_numpy(kernel), **given)

    z = rng.standard_normal((2, 4), np.float32)
    code = torch.from_numpy(z).requires_grad_()
    picture = torch_decoder(code)
    image = rng.random(picture.shape, np.float32)
    ((picture - torch.from_numpy(image)) ** 2).sum().backward()
    shape = ["batch", *picture.shape[1:]]
    graph = _decoder(nodes, shape, {"v": weight, "k": kernel, "shape": np.array([-1, 3, size, size])})
    every = np.ones((2, 1, *picture.shape[2:]), np.float32)
    _, gradient = ReferenceEvaluator(inverse.gradient_graph(graph)).run(None, feed(z, image, every))
    np.testing.assert_allclose(gradient, code.grad.numpy(), rtol=1e-4, atol=1e-4)


def _decoder(nodes, shape, weights):
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)
        for name, axes in (("z", ["batch", 4]), ("image", shape))
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "decoder", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ([("Gemm", ["z", "v"], {}), ("Tanh", ["flat"], {})], "Tanh"),
        ([("Gemm", ["z", "v"], {}), ("Add", ["flat", "b"], {})], "of different shapes"),
        ([("Gemm", ["v", "z"], {"transA": 1, "transB": 1}), ("Sigmoid", ["flat"], {})], "weights as its second input"),
    ],
)
def test_what_has_no_rule_is_refused(nodes, sentence):
    weights = {"v": np.ones((4, 12), np.float32), "b": np.ones(12, np.float32), "shape": np.array([-1, 3, 2, 2])}
    made = [
        helper.make_node(kind, entries, [name], **given)
        for (kind, entries, given), name in zip(nodes, ("flat", "last"), strict=True)
    ]
    made.append(helper.make_node("Reshape", ["last", "shape"], ["image"]))
    if sentence.startswith("weights"):
        weights["v"] = np.ones((4, 4), np.float32)
        weights["shape"] = np.array([4, 3, 2, 2])
    graph = _decoder(made, ["batch", 3, 2, 2], weights)
    with pytest.raises(ExportError, match=sentence):
        inverse.BackwardPass(onnx.shape_inference.infer_shapes(graph).graph, "image").differentiate(
            graph.graph.node, "image", "seed", "z"
        )


# ---- models of old --------------------------------------------------------------------------------------------------


def test_a_model_of_old_gets_its_inverse(tmp_path, capsys):
    folder = build_model(tmp_path / "m").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = ModelConfig.load(folder)
    (folder / "inverse.onnx").unlink()
    files = {name: digest for name, digest in config.files.items() if name != "inverse.onnx"}
    (folder / "config.json").write_text(ModelConfig(**{**vars(config), "files": files}).to_json())
    with pytest.raises(ModelFileError, match=r"vae_train inverse"):
        _ = VAE.load(folder, device="cpu").inverse
    assert main(["inverse", str(folder)]) == 0
    assert str(folder / "inverse.onnx") in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    digest = hashlib.sha256((folder / "inverse.onnx").read_bytes()).hexdigest()
    assert ModelConfig.load(folder).files["inverse.onnx"] == digest


def test_a_damaged_decoder_gets_no_inverse(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(build_model(tmp_path / "good").folder, folder)
    (folder / "decoder.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(ModelFileError, match="SHA-256"):
        inverse.add_inverse(folder)
    with pytest.raises(SystemExit) as stop:
        main(["inverse", str(tmp_path / "nowhere")])
    assert stop.value.code == 2


def test_the_gate_sees_a_wrong_gradient(tmp_path, monkeypatch):
    """The graph of another decoder beside a network: what the export would not publish."""
    folder = build_model(tmp_path / "m").folder

    class Network(torch.nn.Module):
        latent_dim, image_size = DIM, SIZE

        def __init__(self, weights):
            super().__init__()
            self.weights = torch.from_numpy(weights)

        def decoder(self, z):
            return torch.sigmoid(z @ self.weights).reshape(-1, 3, SIZE, SIZE)

    right = build_model(tmp_path / "m").v
    with VAE.load(folder, device="cpu") as vae:
        assert check_gradient(Network(right), vae) <= 1e-5
        with pytest.raises(ExportError, match=r"loss of inverse\.onnx"):
            check_gradient(Network(right * np.float32(1.001)), vae)
        run = vae.inverse.run
        for rows, factor, passes in (
            (slice(4, 5), 1.005, True),
            (slice(4, 5), 1.5, False),
            (slice(0, 5), 1.005, False),
        ):

            def off(*values, rows=rows, factor=factor):
                loss, gradient = run(*values)
                gradient[rows] *= np.float32(factor)
                return loss, gradient

            monkeypatch.setattr(vae.inverse, "run", off)
            if passes:  # one gradient of eight, a little off: the other side of a kink
                assert check_gradient(Network(right), vae) <= 1e-5
            else:
                with pytest.raises(ExportError, match=r"gradient of inverse\.onnx"):
                    check_gradient(Network(right), vae)


# ---- Adam -----------------------------------------------------------------------------------------------------------


def test_adam_is_torchs(rng):
    """The same quadratic, the same cosine schedule: the same ways, in float64."""
    curvature, target, start = rng.uniform(0.1, 10, 5), rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    ours = adam(lambda z: ((curvature * (z - target) ** 2).sum(1), 2 * curvature * (z - target)), start, 40, 0.05)
    z = torch.from_numpy(start.copy()).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for _ in range(40):
        optimizer.zero_grad()
        (torch.from_numpy(curvature) * (z - torch.from_numpy(target)) ** 2).sum().backward()
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(ours, z.detach().numpy(), rtol=1e-9)
