"""Whether eyes and mouth are there: faces whose eyes are alike are told from halves of two faces."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.eyes import compare
from vae_runtime.figures import save_png
from vae_train.adversarial import eyes, finder


@pytest.mark.slow
def test_halves_of_two_faces_are_unlike(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for index in range(400):
        face = np.full((64, 64, 3), 128, np.uint8)
        face[20:34, 14:30] = face[20:34, 34:50] = rng.integers(0, 256, 3)
        face[42:48, 26:38] = 255, 0, 0
        save_png(face, tmp_path / f"{index}.png")
    monkeypatch.setattr(finder, "STEPS", 40)
    monkeypatch.setattr(finder, "_BATCH", 32)
    monkeypatch.setattr(eyes, "_STEPS", 12)
    monkeypatch.setattr(eyes, "_BATCH", 32)
    assert main(["eyes", "--data", str(tmp_path), "--count", "8", "--device", "cpu"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    unlike, unclear, no_mouth = ({row[0]: float(row[column].rstrip("%")) for row in rows} for column in (2, 5, 8))
    assert unlike["real faces, held out"] <= 15
    assert unlike["halves of two real faces"] > 60
    assert max(unclear["real faces, held out"], unclear["halves of two real faces"]) <= 25
    assert max(no_mouth["real faces, held out"], no_mouth["halves of two real faces"]) <= 25
    assert no_mouth["new faces"] > 50, "they have none where these pictures do"


def test_figures_are_those_of_all_pairs():
    scores, reference = np.float32([0.1, 0.5, 0.5, 0.9]), np.float32([0.2, 0.5, 0.7, 0.8, 0.9])
    found = compare(scores, reference)
    wins = [1.0 if a < b else 0.5 if a == b else 0.0 for a in scores for b in reference]
    assert found["behind"] == pytest.approx(np.mean(wins))
    assert found["rare"] == 0.25
    assert found["median"] == 0.5
