"""What a child process does in the tests: a module of its own, because a spawned child imports it by name."""

from __future__ import annotations

from multiprocessing.queues import Queue
from typing import Any

import numpy as np

from vae_runtime import VAE


def decode_in_child(vae: VAE, z: np.ndarray[Any, Any], queue: Queue[Any]) -> None:
    queue.put(vae.decode(z))
