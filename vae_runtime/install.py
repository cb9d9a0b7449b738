"""The pip command that installs an optional dependency group, right for how this package was installed itself."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

PACKAGE = "anime-vae"


def install_command(extra: str) -> str:
    """A pip command for one of the extras of pyproject.toml: from the checkout, the wheel, or the package index."""
    place = _source()
    if place is None:
        return f'pip install "{PACKAGE}[{extra}]"'
    editable = "-e " if place.is_dir() else ""
    return f"pip install {editable}{shlex.quote(f'{place}[{extra}]')}"


def _source() -> Path | None:
    """The checkout or wheel file that this package comes from; None if it came from an index."""
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return root
    try:
        address = json.loads(metadata.distribution(PACKAGE).read_text("direct_url.json") or "{}").get("url", "")
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return None
    path = Path(url2pathname(urlparse(address).path)) if address.startswith("file:") else None
    return path if path is not None and path.exists() else None
