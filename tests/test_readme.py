"""The README as the first page of the project: its length, its links, its set-up commands. Its code: test_docs.py."""

from __future__ import annotations

import re

import pytest
from documents import ROOT, blocks, commands_of

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_it_is_short():
    assert len(TEXT.encode()) <= 8192


def test_there_are_two_set_up_commands_and_ci_runs_the_second():
    setup = [line for block in blocks(README, "bash") for line in block.splitlines() if "-m venv" in line]
    assert len(setup) == 2
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = setup[1].split(" && ")[-2:]
    assert install.replace("pip install", "pip install -q") in script
    assert test in script


def test_it_shows_training_in_three_commands_and_the_runtime_in_five_lines():
    commands = commands_of(README)
    assert sum(line.startswith("anime-vae ") for line in commands) >= 5
    assert {"crop", "--data"} <= {line.split()[3] for line in commands if line.startswith("python -m vae_train ")}


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT))
def test_every_link_leads_somewhere(path):
    assert (ROOT / path).exists()
