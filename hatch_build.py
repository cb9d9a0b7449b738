"""What pyproject.toml cannot say about the packages: links of the README, the bundled model, extras of a wheel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

MODEL = "exported/anime-64"
CHECKOUT_EXTRAS = ("demo", "dev", "docs")
"""Extras of what a checkout has and a wheel has not."""


class ReadmeHook(MetadataHookInterface):
    """The README as the page of a package index: its relative links lead into the repository."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute_links(text, metadata["urls"]["Repository"]),
        }


class WheelHook(BuildHookInterface[Any]):
    """Adds the bundled model to a wheel, and leaves out the extras that only a checkout can use."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for path in bundled_files(Path(self.root)):
            build_data["force_include"][path] = f"vae_runtime/{path}"
        for extra in CHECKOUT_EXTRAS:
            self.metadata.core.optional_dependencies.pop(extra, None)


def absolute_links(text: str, repository: str) -> str:
    """Markdown with the relative links of its pictures and pages made absolute."""
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{repository}/raw/HEAD/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{repository}/blob/HEAD/", text)


def bundled_files(root: Path) -> list[str]:
    """The files of the default model, by its config.json, without the smaller variants and the pictures of its card."""
    config = json.loads((root / MODEL / "config.json").read_text(encoding="utf-8"))
    graphs_of_variants = re.compile(r"\.(fp16|int8)\.onnx$")
    names = [name for name in config["files"] if not graphs_of_variants.search(name)]
    return [f"{MODEL}/{name}" for name in sorted({*names, "config.json", "README.md"})]
