"""Downloads from the Hugging Face Hub through huggingface_hub, which keeps the cache and honours HF_HUB_OFFLINE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vae_runtime.errors import HubError, InputError, RuntimeMissingError

HUB_PREFIX = "hf:"

_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def parse_address(address: str) -> tuple[str, str | None]:
    """("owner/name", revision or None) from "hf:owner/name[@revision]"; InputError for anything else."""
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise InputError(f"{address!r}: expected hf:owner/name or hf:owner/name@revision")
    return match[1], match[2]


def download(address: str, kind: Literal["model", "dataset"], patterns: Sequence[str]) -> Path:
    """The local folder with the files of a Hub repository that match `patterns`; fetched once, then cached.

    Raises InputError for a bad address, RuntimeMissingError without huggingface_hub, HubError when the Hub says no or
    cannot be reached.
    """
    repository, revision = parse_address(address)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise RuntimeMissingError(f'{address} needs huggingface_hub; pip install "anime-vae[hub]"') from error
    try:
        return Path(snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the Hub's own errors, those of its HTTP client and of the disk share no base class
        first_line = (str(error).strip().splitlines() or [""])[0][:160]
        raise HubError(f"{address}: the {kind} cannot be fetched ({type(error).__name__}: {first_line})") from error
