"""Chapters that commands write into a model card."""

from __future__ import annotations

from pathlib import Path

import pytest

from vae_runtime.config import CARD_FILE, ModelConfig
from vae_runtime.errors import ModelFileError
from vae_train.config import TrainConfig
from vae_train.export.model_card import CARD_FIGURES, Statements, model_card, write_section


def test_a_chapter_is_added_replaced_and_taken_out(tmp_path):
    card = tmp_path / CARD_FILE
    card.write_text("# model\n\nwords\n")
    write_section(tmp_path, "one", "## A\n")
    write_section(tmp_path, "two", "## B")
    both = card.read_text()
    assert both.startswith("# model\n\nwords\n\n<!-- written by one -->\n\n## A\n\n<!-- end of one -->\n\n<!-- written")
    write_section(tmp_path, "one", "## A, again \\1")
    assert card.read_text() == both.replace("## A", "## A, again \\1")
    write_section(tmp_path, "one", "## A")
    assert card.read_text() == both
    write_section(tmp_path, "one", "")
    write_section(tmp_path, "two", "")
    assert card.read_text() == "# model\n\nwords\n"


def test_a_model_without_a_card(tmp_path):
    with pytest.raises(ModelFileError, match=r"README\.md: cannot be read"):
        write_section(tmp_path, "one", "text")


@pytest.mark.parametrize("name", ["anime-32", "anime-64", "avatars-64"])
def test_shipped_cards_are_those_of_the_current_template(name):
    folder = Path(__file__).parents[2] / "exported" / name
    card, config = (folder / CARD_FILE).read_text(), ModelConfig.load(folder)
    template = model_card(config, TrainConfig(), folder, "", Statements("mit"))
    for section in ("# ", "## Use and limits"):
        paragraph = template.split(f"\n{section}", 1)[1].split("\n## ", 1)[0].rstrip()
        assert paragraph in card
    assert all((folder / figure).is_file() for figure in CARD_FIGURES)
