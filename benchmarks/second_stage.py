"""How fast the second stage is, and where its time goes: each part of a step alone, and whole steps, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from vae_runtime.prior import Prior
from vae_train.adversarial.config import RefineConfig
from vae_train.adversarial.critic import critic_loss
from vae_train.adversarial.state import Setup, State, make_setup, make_state
from vae_train.adversarial.steps import WARM_UP, train_step
from vae_train.config import TrainConfig, make_config
from vae_train.engine.device import choose_precision
from vae_train.model.networks import VAE

FACES = 256
"""Random pictures that stand for the training faces: their content costs nothing."""


def measure(device: torch.device, repeats: int = 20) -> dict[str, float]:
    """Milliseconds, medians of `repeats`, of a step and of its parts, for the decoder that `refine` tunes at 64x64.

    The parts are those of one step: the frozen network on real faces, on new ones with its gradient, and half of the
    time on reconstructions; the network of the moments on new faces in one step of four; the decoder's forward
    and backward pass; three passes of the critic.
    """
    setup, state = _prepare(device)
    size, generator = setup.config.batch_size, setup.generator(0)
    faces = setup.pictures(size, generator)
    codes = state.average_prior(setup.draws(0, generator))
    codes = torch.cat([codes, codes[: size // 2]])
    with torch.no_grad():
        features = state.critic.projection.standardize(setup.features(faces))

    def frozen_network() -> None:
        with torch.no_grad():
            setup.features(faces)
        for picture in (faces, faces[: size // 2]):  # half of the reconstructions, every other step with the target
            picture = picture.clone().requires_grad_()
            torch.stack([found.float().sum() for found in setup.features(picture)]).sum().backward()

    def moments() -> None:
        picture = faces[: size // 4].clone().requires_grad_()
        torch.cat(setup.statistics(picture), 1).sum().backward()
        with torch.no_grad():
            setup.statistics(faces[: size // 4])

    def decoder() -> None:
        with setup.autocast():
            image = state.model.decoder(codes)
        image.square().mean().backward()

    def critic() -> None:
        for _ in range(3):
            with setup.autocast():
                scores = state.critic(features, faces)
            critic_loss(scores, scores).backward()

    def step() -> None:
        train_step(state, setup)

    for _ in range(WARM_UP + 2):
        step()
    parts: dict[str, Callable[[], None]] = {
        "step": step,
        "frozen network": frozen_network,
        "moments": moments,
        "decoder": decoder,
        "critic": critic,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    state.critic.requires_grad_(True)
    for _ in range(repeats):  # interleaved, so that a busy moment hits all of them
        for name, part in parts.items():
            started = time.perf_counter()
            part()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append((time.perf_counter() - started) * 1e3)
            state.critic.requires_grad_(True)
    return {name: median(values) for name, values in times.items()}


def as_table(times: dict[str, float], batch_size: int = RefineConfig.batch_size) -> str:
    """Markdown: milliseconds and the share of a step; below it, the speed."""
    rows = ["| | ms | of a step |", "|---|---|---|"]
    rows += [f"| {name} | {value:.1f} | {value / times['step']:.0%} |" for name, value in times.items()]
    return "\n".join([*rows, "", f"{batch_size / times['step'] * 1e3:.0f} new faces a second."])


def _prepare(device: torch.device) -> tuple[Setup, State]:
    """The second stage of the preset `base` at its start, on random pictures."""
    config = RefineConfig()
    settings = {"preset": "base", "decoder": "fine", "batch_norm": False}
    networks: TrainConfig = make_config(settings)
    mixed = choose_precision("auto", device) == "bfloat16"
    pixels = np.random.default_rng(0).integers(0, 256, (FACES, 3, networks.image_size, networks.image_size), np.uint8)
    prior = Prior.standard(networks.latent_dim)
    setup = make_setup(config, prior, torch.from_numpy(pixels).to(device), mixed)
    start = VAE.from_config(networks)
    return setup, make_state(setup, networks, start)
