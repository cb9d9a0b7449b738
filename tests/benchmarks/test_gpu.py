"""The command for a day with a GPU, tried on the CPU at a tiny size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, training
from benchmarks.__main__ import main
from vae_runtime.config import ModelConfig

CLASSIC = Path(__file__).parents[2] / "exported" / "anime-32"


def test_a_step_that_fails_is_named_and_the_others_are_kept(tmp_path):
    def bad(settings):
        raise RuntimeError("no memory")

    settings = gpu.Settings(CLASSIC, "avatars", torch.device("cpu"), 0.1, tmp_path / "out")
    assert gpu.run(settings, {"first": bad, "second": lambda settings: "| 1 |"}) == ["first"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "failed: no memory" in report
    assert report.endswith("## second\n\n| 1 |\n")


@pytest.mark.slow
def test_parity_and_inference_are_measured_and_written(tmp_path, capsys):
    out = tmp_path / "results"
    command = ["gpu", str(CLASSIC), "--device", "cpu", "--seconds", "0.1", "--batches", "1,2", "--out", str(out)]
    assert main([*command, "--steps", "parity,inference"]) == 0
    rows = json.loads((out / "inference.json").read_text())
    assert {(row["verb"], row["batch"], row["name"]) for row in rows} == {
        (verb, batch, name)
        for verb in ("encode", "decode")
        for batch in (1, 2)
        for name in ("vae_runtime", "onnxruntime CPU")
    }
    assert all(row["passed"] for row in json.loads((out / "parity.json").read_text())["rows"])
    assert "All rows pass" in (out / "report.md").read_text()


def test_training_is_kept_preset_by_preset(tmp_path, monkeypatch):
    def measure(config, device, seconds):
        if config.preset == "base":
            raise RuntimeError("no memory")
        limit = training.Ceiling(2e6, 1e7, {"float32": 1e9}, 1e10)
        return [training.Row("plain loop", "float32", 100.0, 10.0)], limit

    monkeypatch.setattr(training, "measure", measure)
    assert main(["gpu", str(CLASSIC), "--device", "cpu", "--out", str(tmp_path), "--steps", "training"]) == 1
    assert set(json.loads((tmp_path / "training.json").read_text())) == {"classic"}
    assert "failed: no memory" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["by itself", "in time", "badly"])
def test_the_second_stage_ends_by_itself_or_in_time(tmp_path, monkeypatch, ending):
    run = "import pathlib, sys, time; run = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); run.mkdir()\n"
    run += "from vae_train.adversarial.config import RefineConfig\n"
    run += "from vae_train.engine.checkpoint import Checkpoint, save\n"
    run += "(run / 'refine.json').write_text(RefineConfig().to_json())\n"
    run += "save(run / 'checkpoints', Checkpoint(5, {}, {}))\n"
    run += {
        "by itself": "",
        "in time": "try: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(130)",
        "badly": "sys.exit(3)",
    }[ending]
    monkeypatch.setattr(gpu, "export", lambda run, out, faces: ModelConfig.load(CLASSIC))
    monkeypatch.setattr(gpu, "source_of", lambda run: None)
    monkeypatch.setattr(gpu, "REFINE", [sys.executable, "-c", run])
    limit = 1 / 6 if ending == "in time" else 10
    settings = gpu.Settings(CLASSIC, "avatars", torch.device("cpu"), 0.1, tmp_path / "out", minutes=limit)
    failed = gpu.run(settings, {"refine": gpu.refine})
    assert failed == (["refine"] if ending == "badly" else [])
    assert ("80 new faces" in (tmp_path / "out" / "report.md").read_text()) == (ending != "badly")


@pytest.mark.parametrize("arguments", [["--steps", "all"], ["--device", "tpu"], ["--batches", "0"]])
def test_bad_command_lines_exit_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(["gpu", *arguments])
    assert caught.value.code == 2
