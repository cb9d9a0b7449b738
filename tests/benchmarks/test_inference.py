"""Speed beside other runtimes: who is measured, what is written, and the networks that torch runs."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from benchmarks import runtimes
from benchmarks.__main__ import main


@pytest.mark.slow
def test_the_command_measures_what_is_installed(tmp_path, tiny, capsys, monkeypatch):
    class Nothing(runtimes.LocalRuntime):
        name = "nothing"

        def version(self):
            raise ModuleNotFoundError

        def open(self, graph, threads):
            return __import__("no_such_package")

    monkeypatch.setattr(runtimes, "for_speed", lambda: [runtimes.Onnxruntime(), Nothing()])
    out = tmp_path / "b.json"
    options = ["--seconds", "0.1", "--device", "cpu", "--threads", "1,2", "--batches", "1,8", "--json", str(out)]
    assert main(["inference", str(tiny.folder), *options]) == 0
    rows = json.loads(out.read_text())
    assert {(row["verb"], row["batch"], row["threads"], row["name"]) for row in rows} == {
        (verb, batch, threads, name)
        for verb in ("encode", "decode")
        for batch in (1, 8)
        for threads in (1, 2)
        for name in ("vae_runtime", "onnxruntime")
    }
    assert all(row["p50"] <= row["p95"] for row in rows)
    assert all(row["ratio"] == 1 for row in rows if row["name"] == "vae_runtime")
    printed = capsys.readouterr().out
    assert "not measured: nothing, encode (No module named 'no_such_package')" in printed


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--threads", "0"], ["--batches", "1,x"], ["--card"]])
def test_bad_command_lines_exit_with_2_and_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inference", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
