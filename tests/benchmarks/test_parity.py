"""Every runtime beside the exact values: what is judged, what fails, and where the table goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import parity, runtimes
from benchmarks.__main__ import main
from benchmarks.runtimes import (
    LocalRuntime,
    Node,
    OnnxReference,
    Onnxruntime,
    OpenCv,
    OpenVino,
    TorchEager,
    Tract,
    VaeRuntime,
    Web,
)
from vae_runtime import VAE
from vae_runtime.errors import RuntimeMissingError
from vae_runtime.hub import bundled_model

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def bundled():
    with VAE.load(device="cpu", threads=1) as vae:
        yield vae


class Off(LocalRuntime):
    """A runtime that is off by as much as one says, and cannot run batches of 5."""

    name = "off"

    def __init__(self, by: float, tolerance: float | None = runtimes.FLOAT32) -> None:
        self.by, self.tolerance = by, tolerance

    def version(self) -> str:
        return "1"

    def open(self, graph, threads):
        run = VaeRuntime().open(graph, threads)

        def wrong(values):
            if len(values) == 5:
                raise ValueError("no fives\nat all")
            return [output + np.float32(self.by) for output in run(values)]

        return wrong


class Absent(LocalRuntime):
    name = "absent"

    def version(self) -> str:
        raise RuntimeMissingError("absent is not installed")

    def open(self, graph, threads):
        raise AssertionError


def judged(vae, folder, runtime):
    rows, missing = parity.measure(vae, folder, [runtime], 1)
    assert missing == {}
    return rows


def installed(runtime):
    try:
        runtime.version()
    except Exception as error:
        pytest.skip(f"{runtime.name}: {error}")
    return runtime


@pytest.mark.slow
@pytest.mark.parametrize(
    "runtime",
    [VaeRuntime(), Onnxruntime(), OpenCv("new"), OpenCv("classic"), OpenVino(), Tract(), TorchEager()],
    ids=lambda runtime: runtime.name,
)
def test_runtimes_agree_on_the_bundled_model(bundled, runtime):
    rows = judged(bundled, bundled_model(), installed(runtime))
    assert [(row.graph, row.batch) for row in rows] == [
        (graph, batch) for graph in ("encoder", "decoder") for batch in (1, 2, 5, 33)
    ]
    assert parity.failures(rows) == []
    assert all(row.passed for row in rows)


def test_the_definition_of_the_operators_agrees(tiny):
    """onnx.reference, on the tiny model: it is slow."""
    with VAE.load(tiny.folder, device="cpu") as vae:
        rows = judged(vae, tiny.folder, OnnxReference())
    assert parity.failures(rows) == []
    assert max(row.batch for row in rows) == OnnxReference.max_batch


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Path:
    """onnxruntime-node and onnxruntime-web: the folder that $NODE_MODULES names, or from npm."""
    if named := os.environ.get("NODE_MODULES"):
        return Path(named)
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("the runtimes of JavaScript need npm and node")
    folder = tmp_path_factory.mktemp("npm")
    command = [npm, "install", "--silent", "--no-audit", "onnxruntime-node@1.30.0", "onnxruntime-web@1.30.0"]
    environment = os.environ | {"ONNXRUNTIME_NODE_INSTALL": "skip"}  # else it fetches the libraries of CUDA
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm gives no onnxruntime: {done.stderr.strip()[-160:]}")
    return folder / "node_modules"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("kind", ["node", pytest.param("wasm", marks=pytest.mark.browser)])
def test_runtimes_of_javascript_agree(bundled, modules, kind):
    runtime = installed(Node(modules) if kind == "node" else Web(modules, "wasm"))
    rows = judged(bundled, bundled_model(), runtime)
    assert len(rows) == 8
    assert parity.failures(rows) == []


@pytest.mark.slow
@pytest.mark.network
def test_a_program_that_ends_without_an_answer_is_a_failure(tiny, modules, monkeypatch):
    runtime = installed(Node(modules))
    monkeypatch.setattr(Node, "program", lambda self: ["/bin/true"])
    with VAE.load(tiny.folder, device="cpu") as vae:
        rows = judged(vae, tiny.folder, runtime)
    assert {row.reason for row in rows} == {"true ended without an answer"}
    assert not any(row.passed for row in rows)


def test_a_runtime_that_is_off_fails_and_says_where(tiny):
    with VAE.load(tiny.folder, device="cpu") as vae:
        rows = judged(vae, tiny.folder, Off(0.0))
        assert {(row.graph, row.batch) for row in parity.failures(rows)} == {("encoder", 5), ("decoder", 5)}
        assert {row.reason for row in parity.failures(rows)} == {"no fives"}
        assert "FAIL: encoder 5, decoder 5 (no fives)" in parity.as_markdown(rows)
        far = judged(vae, tiny.folder, Off(2e-5))
        assert len(parity.failures(far)) == len(far)
        assert len(parity.failures(judged(vae, tiny.folder, Off(0.02, tolerance=1.0)))) == 4 + 1  # pixels, and fives
        assert parity.failures(judged(vae, tiny.folder, Off(float("nan")))) != []
        assert parity.failures(judged(vae, tiny.folder, Off(0.1, tolerance=None))) == []


def test_the_difference_is_absolute_below_one_and_relative_above():
    assert parity.difference(np.array([0.5, 100.0]), np.array([0.25, 100.0])) == 0.25
    assert parity.difference(np.array([110.0]), np.array([100.0])) == pytest.approx(0.1)
    assert parity.difference(np.zeros(3), np.zeros(2)) == float("inf")
    assert parity.difference(np.array([np.nan]), np.zeros(1)) == float("inf")


def test_the_golden_inputs_are_always_the_same(bundled):
    decoder = parity.parse((bundled_model() / "decoder.onnx").read_bytes())
    once, again = parity.golden_inputs(bundled, decoder), parity.golden_inputs(bundled, decoder)
    for one, other in zip(once, again, strict=True):
        for batch, here, there in zip(parity.BATCHES, one, other, strict=True):
            assert len(here) == batch
            np.testing.assert_array_equal(here, there)


def test_the_command_prints_writes_and_fails(tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny.folder, folder)
    (folder / "README.md").write_text("# the card\n\nwritten by hand\n")
    monkeypatch.setattr(runtimes, "for_parity", lambda modules: [VaeRuntime(), Absent()])
    out = tmp_path / "p.json"
    for _ in range(2):  # the second table takes the place of the first
        assert main(["parity", str(folder), "--card", "--json", str(out), "--markdown", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "not tried: absent (absent is not installed)" in printed
    card = (folder / "README.md").read_text()
    assert card.startswith("# the card\n\nwritten by hand\n\n<!-- written by")
    assert card.count("| vae_runtime |") == card.count("## Every runtime") == 1
    assert "pass at 1e-05" in card
    found = json.loads(out.read_text())
    assert (found["model_id"], found["opset"], found["ir_version"]) == ("tiny", 20, 10)
    assert len(found["rows"]) == 8
    assert found["not_tried"] == {"absent": "absent is not installed"}
    monkeypatch.setattr(runtimes, "for_parity", lambda modules: [VaeRuntime(), Off(1.0)])
    assert main(["parity", str(folder)]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_a_card_must_be_there(tiny):
    with pytest.raises(OSError, match=r"README\.md"):
        main(["parity", str(tiny.folder), "--card"])


def test_everyone_is_asked_and_nobody_twice():
    names = [runtime.name for runtime in runtimes.for_parity(Path("node_modules"))]
    assert len(set(names)) == len(names) == 16
