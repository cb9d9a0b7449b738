"""Whether eyes belong together: faces whose eyes are alike are told from halves of two faces."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from vae_train.adversarial import eyes


@pytest.mark.slow
def test_halves_of_two_faces_are_unlike(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for index in range(400):
            face = np.full((64, 64, 3), 128, np.uint8)
            face[20:34, 12:52] = rng.integers(0, 256, 3)
            buffer = io.BytesIO()
            Image.fromarray(face).save(buffer, "PNG")
            archive.writestr(f"{index}.png", buffer.getvalue())
    monkeypatch.setattr(eyes, "_STEPS", 12)
    monkeypatch.setattr(eyes, "_BATCH", 32)
    assert main(["eyes", "--data", str(tmp_path / "faces.zip"), "--count", "8", "--device", "cpu"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    unlike = {name: float(share.rstrip("%")) for name, _, share in rows}
    assert unlike["real faces, held out"] <= 10
    assert unlike["halves of two real faces"] > 60
    assert "new faces" in unlike
