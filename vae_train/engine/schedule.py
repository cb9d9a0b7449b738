"""Schedules: the learning rate, the weights of the KL divergence and of the patch distance, and the decay of the moving
average of the weights."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str) -> float:
    """The learning rate at a step, counted from 0, of `steps` in all.

    It grows evenly to `peak` over the first `warmup` steps (Goyal et al., "Accurate, large minibatch SGD", 2017,
    section 2.2), then stays there ("constant") or falls as half a cosine to 0 ("cosine": Loshchilov & Hutter, "SGDR",
    2017, equation 5, with one period).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def kl_weight(step: int, warmup: int) -> float:
    """Share of beta at a step, counted from 0: it grows evenly to 1 over the first `warmup` steps.

    Bowman et al., "Generating sentences from a continuous space" (2016), section 3.1. Without it the first steps
    silence latents that the decoder has not learned to use yet.
    """
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def sharpness_weight(step: int, steps: int) -> float:
    """Share of the patch distance's weight at a step, counted from 0, of `steps` in all.

    None before the last quarter, while there is little to sharpen; then it grows evenly to 1 over a tenth of the run.
    """
    return min(1.0, max(0.0, 10 * (step + 1) / steps - 7.5))


def average_weight(step: int, decay: float) -> float:
    """The share of the weights after `step`, counted from 0, in the moving average of all.

    1 - min(decay, (1 + step) / (10 + step)), and 1 at the first step: the average soon forgets the initial weights.
    """
    return 1.0 if step == 0 else 1 - min(decay, (1 + step) / (10 + step))
