"""README.md of a model folder, its Hugging Face card: chapters that commands write into it."""

from __future__ import annotations

import re
from pathlib import Path

from vae_runtime.config import CARD_FILE
from vae_runtime.errors import ModelFileError
from vae_runtime.files import write_atomically


def write_chapter(folder: Path, command: str, text: str) -> Path:
    """Put `text` into the card of the model in `folder`, in place of what the same `command` wrote there, else at the
    end; an empty text takes the chapter out. Returns the card's path; ModelFileError if there is no card.

    command: "python -m benchmarks parity", which the card names at the chapter's edges.
    """
    path = folder / CARD_FILE
    try:
        card = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error}); a chapter needs a model with a card") from error
    start, end = f"<!-- written by {command} -->", f"<!-- end of {command} -->"
    earlier = re.compile(rf"\n*{re.escape(start)}.*?{re.escape(end)}\n*", re.DOTALL)
    chapter = f"\n\n{start}\n\n{text.strip()}\n\n{end}\n" if text.strip() else "\n"
    if earlier.search(card):
        before, after = earlier.split(card, maxsplit=1)
        card = before + chapter + (f"\n{after}" if after else "")
    else:
        card = card.rstrip("\n") + chapter
    write_atomically(path, card)
    return path
