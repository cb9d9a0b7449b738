"""Where fine-tuning starts: the network of an exported model or of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vae_runtime.config import ENCODER_FILE
from vae_runtime.hub import HUB_PREFIX, resolve
from vae_train.config import ARCHITECTURE
from vae_train.engine.runs import load_run
from vae_train.errors import UsageError
from vae_train.model.exported import load_exported, with_fine_decoder
from vae_train.model.networks import VAE, fold_batch_norm
from vae_train.model.presets import FINE, PLAIN


def load_initial(model: str, decoder: str = PLAIN, seed: int = 0) -> tuple[dict[str, Any], VAE]:
    """The settings and the network of an exported folder, "hf:owner/name", or a run or one of its checkpoints.

    The settings are those of `ARCHITECTURE`, the likelihood and beta. With decoder="fine", a plain decoder becomes a
    fine one; what is new in it starts at random, decided by the seed. Raises UsageError for anything else, and the
    errors of `load_exported` and `load_run`.
    """
    settings, network = _load(model)
    if decoder == FINE and network.decoder_kind == PLAIN:
        fold_batch_norm(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = with_fine_decoder(network)
        settings |= {"decoder": FINE, "batch_norm": False}
    return settings, network


def _load(model: str) -> tuple[dict[str, Any], VAE]:
    path = Path(model)
    if not model.startswith(HUB_PREFIX) and not path.exists():
        raise UsageError(f"--init {model}: no such model; give an exported folder, hf:owner/name or a run")
    if model.startswith(HUB_PREFIX) or (path / ENCODER_FILE).is_file():
        config, network = load_exported(resolve(model))
        settings: dict[str, Any] = {
            "preset": config.preset,
            "image_size": config.image_size,
            "latent_dim": config.latent_dim,
            "decoder": network.decoder_kind,
            "batch_norm": False,
        }
        return settings | {"likelihood": config.likelihood, "beta": config.beta}, network
    trained, _, network = load_run(path)
    return {name: getattr(trained, name) for name in (*ARCHITECTURE, "likelihood", "beta")}, network
