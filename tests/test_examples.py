"""The programs in examples/, run as a user runs them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import DIM

from vae_runtime import VAE

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_models_of_the_hub_stay_addresses(monkeypatch):
    """Without Ray: only the function is taken out of the example."""
    source = (EXAMPLES / "encode_on_ray.py").read_text(encoding="utf-8")
    (node,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == "for_every_machine"]
    names = {"os": os}
    exec(compile(ast.Module([node], []), "encode_on_ray.py", "exec"), names)
    find = names["for_every_machine"]
    assert (find(None), find("hf:owner/name@main")) == (None, "hf:owner/name@main")
    assert find("model") == os.path.abspath("model")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason='ray is not installed; pip install "ray[data]"')
def test_ray_gives_the_codes_of_one_machine(tiny, tmp_path, rng):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "faces").mkdir()
    for index in range(70):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "faces" / f"{index}.png")
    (tmp_path / "faces" / "broken.png").write_bytes(b"no picture")
    command = [sys.executable, "encode_on_ray.py", tmp_path / "faces", tmp_path / "codes"]
    # No network, no home, and little shared memory, as in a container.
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1"}
    done = subprocess.run(
        [*command, "--workers", "2", "--model", tiny.folder],
        cwd=EXAMPLES,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "broken.png: bytes: not a picture" in done.stdout + done.stderr
    table = parquet.read_table(tmp_path / "codes")
    paths = table["path"].to_pylist()
    assert {Path(path).name for path in paths} == {f"{index}.png" for index in range(70)}
    for name, wanted in zip(("mu", "logvar"), VAE.load(tiny.folder, device="cpu").encode(paths), strict=True):
        found = np.array(table[name].to_pylist(), np.float32)
        assert found.shape == (70, DIM)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
