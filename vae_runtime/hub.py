"""Locate models: the bundled one, folders, and the Hugging Face Hub (download and upload)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vae_runtime.config import DECODER_FILE, ENCODER_FILE, INVERSE_FILE, Variant, graph_files
from vae_runtime.errors import HubError, InputError, InputTypeError, ModelFileError, RuntimeMissingError
from vae_runtime.install import install_command

HUB_PREFIX = "hf:"

DEFAULT_MODEL = "anime-64"
"""Name of the bundled model, which `VAE.load()` opens."""

_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def parse_address(address: str) -> tuple[str, str | None]:
    """("owner/name", revision or None) from "hf:owner/name[@revision]"; InputError for anything else."""
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise InputError(f"{address!r}: expected hf:owner/name or hf:owner/name@revision")
    return match[1], match[2]


def download(address: str, kind: Literal["model", "dataset"], patterns: Sequence[str]) -> Path:
    """The local folder with the files of a Hub repository that match `patterns`; fetched once, then cached.

    Raises InputError for a bad address, RuntimeMissingError without huggingface_hub, HubError when the Hub refuses or
    cannot be reached.
    """
    repository, revision = parse_address(address)
    hub = _client(address)
    try:
        return Path(hub.snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the Hub's own errors, those of its HTTP client and of the disk share no base class
        raise HubError(f"{address}: the {kind} cannot be fetched ({_reason(error)})") from error


def push(
    folder: Path,
    address: str,
    files: Sequence[str] | None = None,
    private: bool = False,
    space_sdk: Literal["gradio", "static"] | None = None,
) -> str:
    """Upload `files` of `folder`, or all, to a repository that is created if missing; returns the URL of the commit.

    space_sdk: what runs a Space; None for a model. Uses the token of `hf auth login` or of $HF_TOKEN. Raises
    InputError for a bad address or one with a revision, RuntimeMissingError without huggingface_hub, HubError without a
    token, or when the Hub refuses or cannot be reached.
    """
    repository, revision = parse_address(address)
    if revision is not None:
        raise InputError(f"{address!r}: expected hf:owner/name, without a revision")
    hub = _client(address)
    if not hub.get_token():
        raise HubError(f"{address}: no token, so nothing was pushed; run hf auth login, or set HF_TOKEN")
    kind = "model" if space_sdk is None else "space"
    try:
        api = hub.HfApi()
        api.create_repo(repository, repo_type=kind, private=private, space_sdk=space_sdk, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=None if files is None else list(files),
            commit_message=f"Upload the {kind}",
        )
        return str(done.commit_url)
    except Exception as error:
        raise HubError(f"{address}: cannot be written ({_reason(error)})") from error


def resolve(model: str | os.PathLike[str] | None, variant: Variant | None = None) -> Path:
    """The folder of a model: the bundled one for None, a folder, or a download of "hf:owner/name[@revision]".

    variant: of a download, the graphs to fetch.
    """
    if model is None:
        return bundled_model()
    if not isinstance(model, (str, os.PathLike)):
        raise InputTypeError(f"model: got {type(model).__name__}, expected a folder, 'hf:owner/name' or None")
    if str(model).startswith(HUB_PREFIX):
        return download(str(model), kind="model", patterns=["*.json", *graph_files(variant), INVERSE_FILE, "*.npz"])
    folder = Path(model)
    try:
        what = "" if folder.is_dir() else "not a folder" if folder.exists() else "no such folder"
    except OSError as error:  # as for a name that is too long
        raise ModelFileError(f"{folder}: cannot be read ({error.strerror}); give the folder of a model") from error
    if what:
        raise ModelFileError(f"{folder}: {what}, expected one with config.json, {ENCODER_FILE} and {DECODER_FILE}")
    return folder


def bundled_model() -> Path:
    """The folder of the default model: inside the installed package, or `exported/` in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "exported" / DEFAULT_MODEL, package.parent / "exported" / DEFAULT_MODEL):
        if folder.is_dir():
            return folder
    raise ModelFileError(f"the bundled model {DEFAULT_MODEL} is not in this installation; install anime-vae again")


def _client(address: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise RuntimeMissingError(f"{address} needs huggingface_hub; {install_command('hub')}") from error
    return huggingface_hub


def _reason(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {first_line}"
