from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vae_runtime import VAE, ModelFileError
from vae_runtime.ort.verify import OPERATORS, graph_summary, read_verified

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def build(*nodes, inputs=("x",), outputs=("y",), weights=(), domains=(("", 20),)) -> bytes:
    def ports(names):
        return [helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in names]

    graph = helper.make_graph(list(nodes), "g", ports(inputs), ports(outputs), list(weights))
    opsets = [helper.make_opsetid(*domain) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def node(kind, *entries, domain="", **attributes):
    return helper.make_node(kind, entries or ["x"], ["y"], domain=domain, **attributes)


def test_the_outline_is_what_onnx_says(tiny):
    for file in ("encoder.onnx", "decoder.onnx"):
        data = (tiny.folder / file).read_bytes()
        graph = onnx.load_from_string(data)
        found = graph_summary(data, file)
        assert sorted(found.operators.elements()) == sorted(item.op_type for item in graph.graph.node)
        assert found.opset == graph.opset_import[0].version == 20


def test_the_bundled_model_is_made_of_allowed_operators():
    vae = VAE.load(device="cpu")
    assert vae.encoder.summary.operators.keys() | vae.decoder.summary.operators.keys() <= OPERATORS
    # One at the entrance, two halvings, two in each of three blocks, one before z; two doublings and the exit.
    assert vae.encoder.summary.operators["Conv"] == 10
    assert vae.decoder.summary.operators["ConvTranspose"] == 3


def test_allowed_operators_are_of_the_standard():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= OPERATORS


BRANCH = helper.make_graph([], "inner", [], [])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (build(node("RandomNormalLike")), "RandomNormalLike"),
        (build(node("ConstantOfShape")), "ConstantOfShape"),
        (build(node("Expand", "x", "x")), "Expand"),
        (build(node("Loop", "x", body=BRANCH)), "Loop|subgraph"),
        (build(node("If", "x", then_branch=BRANCH, else_branch=BRANCH)), "If|subgraph"),
        (build(node("Identity", extra=BRANCH)), "subgraph"),
        (
            build(node("Gelu", domain="com.microsoft"), domains=(("", 20), ("com.microsoft", 1))),
            r"com\.microsoft.Gelu",
        ),
        (build(node("Made Up")), "Made Up"),
    ],
)
def test_other_operators_are_refused_by_name(data, said):
    with pytest.raises(ModelFileError, match=said):
        graph_summary(data, "face.onnx")


def test_tags_of_more_than_32_bits_are_refused():
    """Of them, ONNX Runtime reads the low 32 bits: what looks like an unknown field here is the operator there."""
    entry = node("Identity").SerializeToString() + bytes([0xA2, 0x80, 0x80, 0x80, 0x10]) + b"\x06Sneaky"
    graph = b"\x0a" + bytes([len(entry)]) + entry
    with pytest.raises(ModelFileError, match="32 bits"):
        graph_summary(b"\x3a" + bytes([len(graph)]) + graph + b"\x42\x02\x10\x14", "face.onnx")


def external(**fields) -> onnx.TensorProto:
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "w")
    if fields.get("located", True):
        tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=fields.get("place", "weights.bin"))
    return tensor


@pytest.mark.parametrize("place", ["weights.bin", "../../etc/passwd", "/etc/passwd"])
@pytest.mark.parametrize("located", [True, False])
def test_external_data_is_refused(place, located):
    weight = external(place=place, located=located)
    with pytest.raises(ModelFileError, match="another file"):
        graph_summary(build(node("Add", "x", "w"), weights=[weight]), "face.onnx")
    with pytest.raises(ModelFileError, match="another file"):
        graph_summary(build(node("Add", "x", "c"), node("Constant", value=weight)), "face.onnx")


@pytest.mark.parametrize("data", [b"", b"\x08\x0a", b"\xff" * 30, b"\x3a\x05ab", b"\x38\x01", b"\x0b" * 9])
def test_bytes_that_are_no_graph_are_refused(data):
    with pytest.raises(ModelFileError, match=r"face\.onnx: not an ONNX graph"):
        graph_summary(data, "face.onnx")


def test_functions_and_sparse_weights_are_refused():
    model = onnx.load_from_string(build(node("Relu")))
    model.functions.add(name="f", domain="d")
    with pytest.raises(ModelFileError, match="functions"):
        graph_summary(model.SerializeToString(), "m")
    model = onnx.load_from_string(build(node("Relu")))
    model.graph.sparse_initializer.add()
    with pytest.raises(ModelFileError, match="sparse"):
        graph_summary(model.SerializeToString(), "m")


def test_a_truncated_file_is_called_so(tmp_path):
    data = build(node("Relu"), weights=[onnx.numpy_helper.from_array(np.ones(500, np.float32), "w")])
    digest, path = hashlib.sha256(data).hexdigest(), tmp_path / "face.onnx"
    for short in (1, 100, len(data) // 2):
        path.write_bytes(data[:-short])
        with pytest.raises(ModelFileError, match="truncated"):
            read_verified(path, digest)
    path.write_bytes(data.replace(b"Relu", b"Tanh"))
    with pytest.raises(ModelFileError, match="damaged or of another export"):
        read_verified(path, digest)
    path.write_bytes(data)
    assert read_verified(path, digest) == data


def test_every_flipped_byte_is_refused(tmp_path, rng):
    data, path = build(node("Relu")), tmp_path / "face.onnx"
    digest = hashlib.sha256(data).hexdigest()
    for place in rng.integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            read_verified(path, digest)
