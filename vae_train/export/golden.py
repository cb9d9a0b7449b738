"""Writing golden.json: codes and pictures with the outputs of both graphs, which `vae_runtime.golden` checks."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from vae_runtime import VAE
from vae_runtime.config import GOLDEN_FILE, ModelConfig
from vae_runtime.files import write_atomically
from vae_runtime.golden import Golden

COUNT = 4
SEED = 2026


def write_golden(folder: Path) -> ModelConfig:
    """Write the golden vectors of the model in `folder`, made on the CPU, and return its config.json, which names them.

    No other file is changed. On one machine, the same model gives the same bytes.
    """
    with VAE.load(folder, device="cpu", threads=1) as vae:
        z = vae.prior.sample(COUNT, SEED)
        image = vae.decode(z)
        data = to_json(Golden(vae.config.model_id, z, image, *vae.encode(image))).encode()
        files = {**vae.config.files, GOLDEN_FILE: hashlib.sha256(data).hexdigest()}
        config = dataclasses.replace(vae.config, files=files)
    write_atomically(folder / GOLDEN_FILE, data)
    config.save(folder)
    return config


def to_json(golden: Golden) -> str:
    """The text of golden.json."""
    arrays = {name: getattr(golden, name).tobytes() for name in ("z", "image", "mu", "logvar")}
    fields: dict[str, Any] = {"model_id": golden.model_id}
    # base64url: its letters never form a path, and a test forbids paths of a machine in published files.
    fields |= {name: base64.urlsafe_b64encode(data).decode() for name, data in arrays.items()}
    fields["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in arrays.items()}
    return json.dumps(fields, indent=1) + "\n"
