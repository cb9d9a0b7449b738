"""python -m benchmarks where the packages of training are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_without_torch_it_is_one_sentence():
    code = """
import sys
sys.modules["torch"] = None
from benchmarks.__main__ import main, run
run(main, ["inference"])
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "torch" in done.stderr
    assert "pip install" in done.stderr
