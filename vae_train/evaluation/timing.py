"""Latency of several calls, measured in turns, so that what else the machine does meets each of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MIN_ROUNDS = 3
_WARM_UPS = 3


def latencies(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, NDArray[np.float64]]:
    """Latencies in seconds of each call by its name, from about `seconds` of calls of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    slowest = 0.0
    for call in calls.values():
        for _ in range(_WARM_UPS):
            start = time.perf_counter()
            call()
        slowest = max(slowest, time.perf_counter() - start)
    rounds = min(_ROUNDS, max(_MIN_ROUNDS, int(seconds / slowest)))
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # wakes its threads, and brings its weights back into the cache
            end = time.perf_counter() + seconds / rounds
            while (start := time.perf_counter()) < end:
                call()
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}
