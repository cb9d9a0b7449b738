"""`info` on machines that are not this one: no runtime, both wheels, a GPU and the wrong wheel."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vae_runtime import VAE, DeviceError
from vae_runtime.cli import diagnostics
from vae_runtime.install import install_command
from vae_runtime.ort import devices
from vae_runtime.ort.devices import CPU, CUDA, Driver

BOTH = "pip uninstall -y onnxruntime onnxruntime-gpu &&"


@pytest.fixture
def machine(monkeypatch):
    """A function that says what the machine has: providers of the runtime (None: no runtime), wheels, GPUs."""

    def build(providers=(CPU,), wheels=("onnxruntime",), gpus=()):
        class Wheel:
            InferenceSession = object

            @staticmethod
            def get_available_providers():
                return list(providers)

        def load():
            if providers is None:
                raise diagnostics.RuntimeMissingError("onnxruntime is not installed; pip install it")
            if not providers:
                raise diagnostics.RuntimeMissingError("onnxruntime is an empty package")
            return Wheel

        driver = Driver("13.0", tuple(gpus)) if gpus else Driver("", ())
        for module in (devices, diagnostics):
            monkeypatch.setattr(module, "import_onnxruntime", load)
            monkeypatch.setattr(module, "installed_wheels", lambda: dict.fromkeys(wheels, "1.32.0"))
            monkeypatch.setattr(module, "cuda_driver", lambda: driver)

    return build


def test_a_healthy_cpu_machine_has_nothing_wrong(machine):
    machine()
    assert diagnostics.diagnose() == ("", "")
    assert diagnostics.environment()["onnxruntime-gpu"] == "not installed"


def test_each_illness_has_its_line(machine, monkeypatch):
    machine(None, ())
    assert diagnostics.diagnose() == ("ONNX Runtime is not installed", install_command("cpu"))
    machine(None, (), ["H200"])
    assert diagnostics.diagnose()[1] == install_command("gpu")
    machine((), ("onnxruntime",))
    assert "empty" in diagnostics.diagnose()[0]
    assert diagnostics.diagnose()[1] == f"{BOTH} {install_command('cpu')}"
    machine((CPU,), ("onnxruntime", "onnxruntime-gpu"), ["H200"])
    assert "both wheels" in diagnostics.diagnose()[0]
    assert diagnostics.diagnose()[1] == f"{BOTH} {install_command('gpu')}"
    machine((CPU,), ("onnxruntime",), ["H200"])
    assert "without CUDA" in diagnostics.diagnose()[0]
    assert diagnostics.diagnose()[1] == f"{BOTH} {install_command('gpu')}"

    def refuse(*arguments, **options):
        raise DeviceError("libcudnn.so.9 is missing")

    machine((CUDA, CPU), ("onnxruntime-gpu",), ["H200"])
    monkeypatch.setattr(VAE, "load", refuse)
    wrong, repair = diagnostics.diagnose()
    assert "libcudnn.so.9" in wrong
    assert repair.startswith(install_command("gpu"))


def info(*blocked: str, path: str = "") -> subprocess.CompletedProcess[str]:
    code = f"""
import sys
sys.path.insert(0, {path!r})
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in {blocked!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from vae_runtime.__main__ import main, run
run(main, ["info"])
"""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)


def test_info_without_a_runtime(tmp_path):
    done = info("onnxruntime")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "ONNX Runtime is not installed" in done.stdout
    assert "repair" in done.stdout


def test_info_with_an_empty_runtime(tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    done = info(path=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "empty package" in done.stdout


def test_info_with_both_wheels(tmp_path):
    for wheel in devices.WHEELS:
        place = tmp_path / f"{wheel.replace('-', '_')}-1.31.1.dist-info"
        place.mkdir()
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 1.31.1\n")
    done = info(path=str(tmp_path))
    assert done.returncode == 0, done.stderr  # a model runs: the CPU wheel has won
    assert "both wheels of ONNX Runtime" in done.stdout
    assert BOTH in done.stdout


def test_the_probe_and_the_nodes(tiny):
    vae = VAE.load(tiny.folder, device="cpu")
    assert set(diagnostics.probe(vae)) == {"encode", "decode"}
    told = hasattr(devices.import_onnxruntime().InferenceSession, "get_provider_graph_assignment_info")
    expected = {f"nodes of {graph}": "3 on CPUExecutionProvider" for graph in ("encoder", "decoder")}
    assert diagnostics.nodes(vae, tiny.folder) == (expected if told else {})


def test_no_word_without_a_driver():
    """The probe for a driver prints nothing, on a machine with a GPU or without."""
    code = "import vae_runtime.ort.devices as devices; devices.cuda_driver()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
