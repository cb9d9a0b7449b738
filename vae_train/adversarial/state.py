"""What a second stage consists of: what stays as it is (`Setup`), and what changes and is saved (`State`)."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_runtime.config import PRIOR_FILE
from vae_runtime.prior import Prior
from vae_train.adversarial.config import RefineConfig
from vae_train.adversarial.critic import Critic
from vae_train.adversarial.eyes import Eyes
from vae_train.adversarial.features import FeatureNetwork, resized
from vae_train.adversarial.matching import FeatureMoments, Textures, pixels
from vae_train.adversarial.mouth import Mouth
from vae_train.adversarial.prior import LearnedPrior, Reach
from vae_train.adversarial.spectrum import mean_spectrum
from vae_train.config import TrainConfig
from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.rng import REFINE, make_generator
from vae_train.engine.state import CHECKPOINTS, load_weights, optimizer_tensors, part_of, restore_optimizer
from vae_train.errors import CheckpointError, TrainingError
from vae_train.export.fit_flow import COUPLINGS
from vae_train.model.exported import with_fine_decoder
from vae_train.model.networks import VAE
from vae_train.model.tensors import CHANNELS_LAST, pick, to_unit

_POOL = 65_536  # draws of the prior at a time
_POOL_USES = 4  # how often each of them is used, on average
_REACH = 20_000  # draws that the reach of the first prior is measured on
_MATCHED_SIDE = 160  # at which the network whose moments are matched sees pictures
_MATCHED_DIRECTIONS = 256  # of the features of that network
_PIXEL_FLOOR = 0.1  # of deviations of pixels: a flat background has none

LOSSES = (
    "critic_loss",
    "generator_loss",
    "squared_error",
    "feature_distance",
    "spectrum_distance",
    "moment_distance",
    "eye_distance",
    "mouth_distance",
    "code_nll",
    "code_excess",
    "real_score",
    "drawn_score",
)
"""What `State.sums` adds up, each as a mean over a batch."""


@dataclass
class State:
    """Where a run stands."""

    model: VAE
    """Its decoder is what is trained."""
    average: VAE
    """The same with the moving average of the decoder's weights, and the encoder that follows it: what is evaluated,
    drawn and exported."""
    prior: LearnedPrior
    """What is drawn from while it learns; then from `average_prior`, as with what is exported."""
    average_prior: LearnedPrior
    critic: Critic
    moments: nn.ModuleList
    """Of each kind of `Setup.statistics`."""
    eyes: Eyes
    mouth: Mouth
    optimizer: torch.optim.Adam
    """Of the decoder and of the prior."""
    critic_optimizer: torch.optim.Adam
    settle_optimizer: torch.optim.Adam
    """Of the decoder of `average`, and of `average_prior`."""
    encoder_optimizer: torch.optim.Adam
    """Of the encoder of `average`."""
    sums: Tensor
    """(len(LOSSES) + 1,) float64: the sums of this epoch, and the number of steps in them."""
    step: int = 0
    seconds: float = 0.0
    """Time that this epoch's steps took so far."""


@dataclass(frozen=True)
class Setup:
    """What a run has beside its state: everything here stays as it is."""

    config: RefineConfig
    network: FeatureNetwork
    """Of the critic and of the feature distance."""
    matched: FeatureNetwork
    """Another, the moments of whose features are matched."""
    textures: Textures
    real: Tensor
    """All training pictures, uint8 (N, 3, S, S), on the device."""
    draws: Draws
    """Of the mixture of the prior, before its flow."""
    covered: Draws
    """Of the prior as it was at the start: codes that it keeps likely while it learns."""
    spectrum: Tensor
    """(3, S/8, S/8): the mean `log_spectrum` of batches of real pictures."""
    mixed: bool
    """Whether decoder and critic multiply in bfloat16."""

    @functools.cached_property
    def reach(self) -> Reach:
        """Of the prior as it was at the start; measured only where a prior learns."""
        codes = self.covered.prior.sample(_REACH, rng=self.config.seed)
        return Reach(torch.from_numpy(codes)).to(self.real.device)

    def generator(self, step: int, purpose: int = REFINE) -> torch.Generator:
        """The random numbers of a step."""
        return make_generator(self.config.seed, purpose, step, self.real.device)

    def pictures(self, count: int, generator: torch.Generator) -> Tensor:
        """Some training pictures, float32 (count, 3, S, S) in [0, 1]."""
        return to_unit(pick(self.real, count, generator))

    def features(self, image: Tensor) -> list[Tensor]:
        """What the feature network finds in pictures of any size."""
        side = self.config.side
        if image.shape[-1] != side:
            image = functional.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
        found: list[Tensor] = self.network(image)
        return found

    @property
    def matchers(self) -> list[Callable[[Tensor], Tensor]]:
        """What finds the features whose moments are matched, (n, 3, S, S) -> (n, c): the network, textures and, if
        they have a weight, pixels."""

        def network(image: Tensor) -> Tensor:
            return self.matched.pooled(resized(image, _MATCHED_SIDE))

        always: list[Callable[[Tensor], Tensor]] = [network, self.textures]
        return [*always, pixels] if self.config.pixels else always

    def statistics(self, image: Tensor) -> list[Tensor]:
        """The features whose moments are matched, of each of `matchers`."""
        return [matcher(image.float()) for matcher in self.matchers]

    def autocast(self) -> torch.autocast:
        """The precision of decoder and critic."""
        return torch.autocast(self.real.device.type, torch.bfloat16, enabled=self.mixed)


class Draws:
    """Codes of a prior, drawn many at a time: which ones a step gets depends on its number and the seed alone."""

    def __init__(self, prior: Prior, config: RefineConfig, device: torch.device) -> None:
        self.prior, self.config, self.device = prior, config, device
        self._number, self._pool = -1, torch.empty(0)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """(batch_size, latent_dim)"""
        number = step * self.config.batch_size // (_POOL * _POOL_USES)
        if number != self._number:
            codes = self.prior.sample(_POOL, rng=np.random.default_rng([self.config.seed, number]))
            self._number, self._pool = number, torch.from_numpy(codes).to(self.device)
        return pick(self._pool, self.config.batch_size, generator)


def make_setup(config: RefineConfig, prior: Prior, real: Tensor, mixed: bool) -> Setup:
    """What a run needs beside its state, on the device of `real`: see `Setup`."""
    precision = torch.bfloat16 if mixed else torch.float32
    network, matched = (FeatureNetwork(name, precision).to(real.device) for name in ("lite0", "lite1"))
    draws, covered = (Draws(of, config, real.device) for of in (dataclasses.replace(prior, flow=None), prior))
    textures = Textures().to(real.device)
    spectrum = mean_spectrum(real, config.batch_size)
    return Setup(config, network, matched, textures, real, draws, covered, spectrum, mixed)


def make_state(setup: Setup, networks: TrainConfig, start: VAE | None) -> State:
    """The networks, their averages and their optimizers; Adam without momentum, as the paper has it."""
    config, device = setup.config, setup.real.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = with_fine_decoder(copy.deepcopy(start)) if start is not None else VAE.from_config(networks)
        critic = Critic(setup.network.channels)
        prior = learned_prior(setup.covered.prior, config)
        eyes, mouth = Eyes().eval().requires_grad_(False), Mouth().eval().requires_grad_(False)
    model.to(device=device, memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    critic.to(device)
    prior.to(device)
    model.eval().encoder.requires_grad_(False)
    channels = [found.shape[1] for found in setup.statistics(to_unit(setup.real[:1]))]
    moments = nn.ModuleList([FeatureMoments(channels[0], _MATCHED_DIRECTIONS), FeatureMoments(channels[1])])
    moments.extend(FeatureMoments(count, floor=_PIXEL_FLOOR) for count in channels[2:])
    groups: list[dict[str, Any]] = [{"params": model.decoder.parameters()}]
    if config.prior_images:
        groups.append({"params": prior.parameters(), "lr": config.prior_rate})
    optimizer = torch.optim.Adam(groups, config.learning_rate, betas=(0.0, 0.99))
    critic_optimizer = torch.optim.Adam(critic.parameters(), config.critic_rate, betas=(0.0, 0.99))
    sums = torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=device)
    average = copy.deepcopy(model).requires_grad_(False)
    average.encoder.requires_grad_(True)  # it follows at the end
    encoder_optimizer = torch.optim.Adam(average.encoder.parameters(), config.learning_rate, betas=(0.9, 0.99))
    average_prior = copy.deepcopy(prior).requires_grad_(False)
    settled = [*average.decoder.parameters(), *average_prior.parameters()]
    settle_optimizer = torch.optim.Adam(settled, config.settle_rate, betas=(0.9, 0.99))
    parts = model, average, prior, average_prior, critic, moments.to(device), eyes.to(device), mouth.to(device)
    return State(*parts, optimizer, critic_optimizer, settle_optimizer, encoder_optimizer, sums)


def learned_prior(prior: Prior, config: RefineConfig) -> LearnedPrior:
    """The prior of a run, as it is at the start."""
    return LearnedPrior(prior, COUPLINGS if config.prior_images else 0)


def save(state: State, epoch: int, data: dict[str, Any], run: Path) -> None:
    """Write a checkpoint. epoch: steps of an epoch. TrainingError if a weight is not finite; CheckpointError."""
    tensors = {"sums": state.sums}
    for name, part in _parts(state).items():
        tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    for name, optimizer in _optimizers(state).items():
        tensors |= optimizer_tensors(optimizer, name)
    if not all(value.isfinite().all() for value in tensors.values()):
        raise TrainingError(f"step {state.step}: weights that are not finite; the last good checkpoint stays in {run}")
    state.average_prior.to_prior().save(run / PRIOR_FILE)
    position = {"epoch": state.step // epoch, "seconds": state.seconds, "data": data}
    checkpoint.save(run / CHECKPOINTS, Checkpoint(state.step, position, tensors))


def restore(state: State, saved: Checkpoint) -> None:
    """Put a checkpoint into `state`; CheckpointError if it belongs to other networks."""
    load_weights(state.model, saved, "model")
    load_weights(state.average, saved, "average")
    others = {name: part for name, part in _parts(state).items() if not isinstance(part, VAE)}
    for name, part in others.items():
        try:
            part.load_state_dict(part_of(saved.tensors, name))
        except RuntimeError as error:
            message = f"the checkpoint's {name} is not that of this version; start a new run from the exported model"
            raise CheckpointError(message) from error
    for name, optimizer in _optimizers(state).items():
        restore_optimizer(optimizer, name, saved.tensors)
    state.sums.copy_(saved.tensors["sums"])
    state.step, state.seconds = saved.step, float(saved.state["seconds"])


def means(state: State) -> dict[str, float]:
    """The means of this epoch so far, by name."""
    *sums, steps = state.sums.tolist()
    return {name: value / max(steps, 1) for name, value in zip(LOSSES, sums, strict=True)}


def _parts(state: State) -> dict[str, nn.Module]:
    names = ("model", "average", "prior", "average_prior", "critic", "moments", "eyes", "mouth")
    return {name: getattr(state, name) for name in names}


def _optimizers(state: State) -> dict[str, torch.optim.Adam]:
    names = ("optimizer", "critic_optimizer", "settle_optimizer", "encoder_optimizer")
    return {name: getattr(state, name) for name in names}
