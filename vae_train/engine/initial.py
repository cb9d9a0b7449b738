"""Where fine-tuning starts: the network of an exported model or of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vae_runtime.config import ENCODER_FILE
from vae_runtime.hub import HUB_PREFIX, resolve
from vae_train.config import ARCHITECTURE
from vae_train.engine.runs import load_run
from vae_train.errors import UsageError
from vae_train.model.exported import load_exported
from vae_train.model.networks import VAE


def load_initial(model: str) -> tuple[dict[str, Any], VAE]:
    """The settings and the network of an exported folder, "hf:owner/name", or a run or one of its checkpoints.

    The settings are those of `ARCHITECTURE`, the likelihood and beta. Raises UsageError for anything else, and the
    errors of `load_exported` and `load_run`.
    """
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
