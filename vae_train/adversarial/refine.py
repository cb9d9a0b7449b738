"""The second stage, top to bottom: a projected GAN (Sauer et al. 2021) tunes the decoder of a trained VAE until draws
of its prior decode to faces.

Each step draws new faces, which the critic tells from real ones, and reconstructs real faces from their codes, which
keep their pictures by squared error and by features (as in VAE/GAN, Larsen et al. 2016). At the start the prior may
learn, too, and then stays (`LearnedPrior`). The encoder stays until the decoder is done; then it follows by the ELBO of
the first stage. Everything random is a function of (seed, step), so that a run that was stopped continues exactly: on a
CPU with the same number of threads, to the bit.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from vae_runtime.config import ENCODER_FILE, PRIOR_FILE, ModelConfig
from vae_runtime.figures import image_grid, save_png
from vae_runtime.hub import HUB_PREFIX, resolve
from vae_runtime.images import load_image
from vae_runtime.ort.verify import read_verified
from vae_runtime.prior import Prior
from vae_train.adversarial.config import REFINE_FILE, RefineConfig
from vae_train.adversarial.critic import Critic, augment, critic_loss, generator_loss
from vae_train.adversarial.eyes import Eyes
from vae_train.adversarial.features import FeatureNetwork, resized
from vae_train.adversarial.matching import FeatureMoments, Textures
from vae_train.adversarial.prior import LearnedPrior, Reach, widened
from vae_train.config import CONFIG_FILE, TrainConfig
from vae_train.data.faces import Faces, load_faces
from vae_train.engine import checkpoint
from vae_train.engine.checkpoint import Checkpoint
from vae_train.engine.device import choose_precision, describe_device
from vae_train.engine.distributed import SINGLE_PROCESS
from vae_train.engine.held_out import evaluate_held_out
from vae_train.engine.initial import load_initial
from vae_train.engine.logger import Logger, make_bar, read_metrics
from vae_train.engine.rng import EYES, REFINE, make_generator
from vae_train.engine.run_folder import (
    Interrupted,
    StopRequest,
    advise_on_memory,
    catch_signals,
    disk_may_refuse,
    lock_run,
)
from vae_train.engine.state import CHECKPOINTS, load_weights, optimizer_tensors, part_of, restore_optimizer
from vae_train.engine.train import describe_data, find_checkpoint
from vae_train.errors import CheckpointError, TrainingError, UsageError
from vae_train.export.fit_flow import COUPLINGS
from vae_train.export.fit_latents import fit_latents
from vae_train.model.exported import with_fine_decoder
from vae_train.model.figures import FIGURES
from vae_train.model.losses import gaussian_nll, kl_divergence, negative_elbo, optimal_variance, squared_error
from vae_train.model.networks import VAE, fold_batch_norm, reparameterize
from vae_train.model.tensors import CHANNELS_LAST, to_pixels, to_unit

SHEET = 36
"""New faces on the sheet that is drawn with each checkpoint, always of the same codes."""
_COLUMNS = 6
FIRST_PRIOR = "first_prior.npz"
"""In a run: the prior as it was at the start."""
WARM_UP = 60
"""First steps of a run, in which the critic learns alone."""

_POOL = 65_536  # draws of the prior at a time
_REACH = 20_000  # draws that their reach is measured on
_POOL_USES = 4  # how often each of them is used, on average
_IMITATION = 2000  # steps in which a new decoder learns to draw like the old one
_BEFORE = 2**40  # numbers of steps for the random numbers of what happens before the first one
_COMPARED = 2400  # real pictures that the spectrum is measured on
_CALIBRATION = 100  # real pictures that the scale of the features is measured on
_MATCHED = 6000  # real pictures that the moments of features are measured on
_MATCHED_SIDE = 160  # at which their network sees pictures
_MATCHED_DIRECTIONS = 256, 0  # of the features of the network and of textures
_TEXTURES = 0.25  # weight of their means; at 1 contrast swung
_FAR = 0.05  # distance of moments from which on it grows like its root
_MATCHED_AVERAGE = 1000  # half-life of the moving averages, in pictures
_INTERVAL = 4  # some losses are computed in one step of so many, and weigh so many times more
_UPDATE_INTERVAL = 2.0  # seconds between two looks at the losses

_YCBCR = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))  # of RGB, ITU-R BT.601

LOSSES = (
    "critic_loss",
    "generator_loss",
    "squared_error",
    "feature_distance",
    "spectrum_distance",
    "moment_distance",
    "eye_distance",
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
    optimizer: torch.optim.Adam
    """Of the decoder and of the prior."""
    critic_optimizer: torch.optim.Adam
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
        return to_unit(self.real[_indices(len(self.real), count, generator)])

    def features(self, image: Tensor) -> list[Tensor]:
        """What the feature network finds in pictures of any size."""
        side = self.config.side
        if image.shape[-1] != side:
            image = functional.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
        found: list[Tensor] = self.network(image)
        return found

    def statistics(self, image: Tensor) -> list[Tensor]:
        """The features whose moments are matched: (n, 3, S, S) -> (n, 1280) of the network and (n, c) of textures."""
        image = image.float()
        return [self.matched.pooled(resized(image, _MATCHED_SIDE)), self.textures(image)]

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
        return self._pool[_indices(_POOL, self.config.batch_size, generator)]


def refine(
    config: RefineConfig, networks: TrainConfig, start: VAE | None, prior: Prior | None, run: Path, device: torch.device
) -> Faces:
    """Tune the decoder until `config.images` new faces were drawn; return the faces it was trained on.

    networks: the settings of the networks and of the pictures. start: the model to begin with, BatchNorm folded away;
    None to continue the run in `run`. prior: of the codes; fitted to those of the training pictures if None.
    Writes into `run` what the first stage writes, so that `export` and `evaluate` take it as any run, and refine.json,
    first_prior.npz, prior.npz and sheets of new faces. Raises UsageError when another process works in `run`,
    TrainingError when the losses diverge, DataError and CheckpointError; Interrupted after a signal, when a checkpoint
    is saved.
    """
    networks = dataclasses.replace(networks, precision=choose_precision(networks.precision, device))
    mixed, warned = networks.precision == "bfloat16", set[Path]()
    with lock_run(run, SINGLE_PROCESS), advise_on_memory(networks, device):
        saved = find_checkpoint(run, SINGLE_PROCESS) if start is None else None
        faces = load_faces(networks.data, networks.image_size, networks.avatars, networks.seed)
        faces.check_trainable(config.batch_size)
        held_out = faces.held_out()
        data = describe_data(faces, held_out, saved, run)
        test = torch.from_numpy(faces.pixels[held_out]).to(device)
        if start is None:
            prior = first_prior(run)
        elif prior is None:
            prior = fit_latents(start, faces, mirrored=True).prior
        if start is not None:
            prior = widened(prior, config.widen)
        setup = make_setup(config, prior, torch.from_numpy(faces.pixels[~held_out]).to(device), mixed)
        state = make_state(setup, networks, start)
        if saved is not None:
            restore(state, saved)
        elif start is not None:
            calibrate(state, setup)
            if config.eyes:
                state.eyes.fit(setup.real, lambda step: setup.generator(_BEFORE + step, EYES))
            imitate(state, start.to(device).eval(), setup)
            prior.save(run / FIRST_PRIOR)
        checkpoint.write(run / CONFIG_FILE, networks.to_json().encode())
        checkpoint.write(run / REFINE_FILE, config.to_json().encode())

        epoch = max(1, len(setup.real) // config.batch_size)
        logger = Logger(run, [line for line in read_metrics(run) if line["step"] <= state.step], False)
        pictures = config.steps * config.batch_size, state.step * config.batch_size
        with catch_signals(SINGLE_PROCESS) as stop, make_bar(*pictures) as bar:
            while state.step < config.steps:
                part = config.steps if follows(state, config) else config.adversarial_steps
                try:
                    train_until(min(part, (state.step // epoch + 1) * epoch), state, setup, bar, stop)
                except Interrupted:
                    save(state, epoch, data, run)
                    raise
                record = close_epoch(state, epoch, config) | {"device": describe_device(device)}
                figures = evaluate_held_out(state.average, test, networks)
                logger.add(record | {f"held_out_{name}": value for name, value in figures.items()})
                save(state, epoch, data, run)
                with disk_may_refuse(run / FIGURES, warned):
                    draw_sheet(state, run)
                bar.write(describe(logger.records[-1]))
        logger.close()
        return faces


def load_start(model: str, networks: TrainConfig) -> tuple[TrainConfig, VAE, Prior | None]:
    """The settings, the networks without BatchNorm, and the prior if there is one, of what a second stage starts from.

    model: an exported folder, "hf:owner/name", a run or one of its checkpoints. networks: gives the pictures.
    """
    settings, start = load_initial(model)
    if settings["preset"] != "base":
        raise UsageError(f"refine: {model} is of the preset {settings['preset']}, only base has a decoder to tune")
    fold_batch_norm(start)
    settings |= {"decoder": "fine", "batch_norm": False}
    return dataclasses.replace(networks, flip=True, **settings), start, exported_prior(model)


def exported_prior(model: str) -> Prior | None:
    """The prior of an exported model; None for a run, or where the model has none."""
    folder = resolve(model) if model.startswith(HUB_PREFIX) else Path(model)
    if not (folder / ENCODER_FILE).is_file():
        return None
    files = ModelConfig.load(folder).files
    if PRIOR_FILE not in files:
        return None
    return Prior.from_bytes(read_verified(folder / PRIOR_FILE, files[PRIOR_FILE]), str(folder / PRIOR_FILE))


def first_prior(run: Path) -> Prior:
    """What a run began with; CheckpointError for a run of a version before, which did not keep it."""
    if not (run / FIRST_PRIOR).is_file():
        raise CheckpointError(f"{run} has no {FIRST_PRIOR}; start a new run from the exported model")
    return Prior.load(run / FIRST_PRIOR)


def learned_prior(prior: Prior, config: RefineConfig) -> LearnedPrior:
    """The prior of a run, as it is at the start."""
    return LearnedPrior(prior, COUPLINGS if config.prior_images else 0)


def train_until(end: int, state: State, setup: Setup, bar: tqdm[Any], stop: StopRequest) -> None:
    """Steps of one kind up to number `end`. Raises Interrupted after the step in which `stop` received a signal."""
    started = looked = time.monotonic()
    name, take_step = ("critic_loss", train_step)
    if follows(state, setup.config):
        name, take_step = ("squared_error", follow_step)
    while state.step < end:
        take_step(state, setup)
        bar.update(setup.config.batch_size)
        if time.monotonic() - looked > _UPDATE_INTERVAL:
            looked = time.monotonic()
            bar.set_postfix_str(f"{name.replace('_', ' ')} {means(state)[name]:.3g}", refresh=False)
        if stop.signal_number:
            state.seconds += time.monotonic() - started
            raise Interrupted(stop.signal_number)
    state.seconds += time.monotonic() - started


def train_step(state: State, setup: Setup) -> None:
    """One step of the critic, then one of the decoder; the first `WARM_UP` steps are the critic's alone."""
    config, generator = setup.config, setup.generator(state.step)
    state.optimizer.param_groups[0]["lr"] = config.learning_rate * config.rate(state.step * config.batch_size)
    real, kept = setup.pictures(config.batch_size, generator), setup.pictures(config.batch_size // 2, generator)
    kept = mirrored(kept, generator)
    draws, learns = setup.draws(state.step, generator), prior_learns(state, config)
    new = state.prior(draws) if learns else state.average_prior(draws)
    codes = torch.cat([new, posterior(state.model, kept, generator)])
    with setup.autocast():
        drawn, reconstructed = state.model.decoder(codes).split([config.batch_size, len(kept)])

    changed, real = (augment(image, generator, config.noise) for image in (drawn, real))
    features = state.critic.projection.standardize(setup.features(changed))
    losses = train_critic(state, setup, real, changed, features)
    if state.step >= WARM_UP:
        with setup.autocast():
            losses["generator_loss"] = generator_loss(state.critic(features, changed))
        losses |= reconstruction_losses(state, setup, reconstructed, kept)
        losses |= statistics_losses(state, setup, drawn, new.detach())
        if learns:
            losses["code_nll"] = -state.prior.log_prob(setup.covered(state.step, generator)).mean()
            losses["code_excess"] = setup.reach(new)
        state.optimizer.zero_grad(set_to_none=True)
        torch.stack(
            [weight * losses[name] for name, weight in config.weights.items() if name in losses]
        ).sum().backward()
        state.optimizer.step()
        update_average(state, config)
    note(state, losses)


def train_critic(
    state: State, setup: Setup, real: Tensor, drawn: Tensor, drawn_features: list[Tensor]
) -> dict[str, Tensor]:
    """One step of the critic on pictures that were augmented; `drawn_features` are standardized. The losses by name."""
    critic = state.critic.requires_grad_(True)
    with torch.no_grad():
        real_features = critic.projection.standardize(setup.features(real))
    with setup.autocast():
        real_scores = critic(real_features, real)
        drawn_scores = critic([feature.detach() for feature in drawn_features], drawn.detach())
    loss = critic_loss(real_scores, drawn_scores)
    state.critic_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.critic_optimizer.step()
    critic.requires_grad_(False)
    return {"critic_loss": loss, "real_score": _mean(real_scores), "drawn_score": _mean(drawn_scores)}


def reconstruction_losses(state: State, setup: Setup, found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """What keeps reconstructions, (n, 3, S, S), like their pictures."""
    losses, scale = {"squared_error": functional.mse_loss(found, wanted)}, state.critic.projection.standardize
    if setup.config.features and state.step % _INTERVAL == 0:
        with torch.no_grad():
            features = scale(setup.features(wanted))
        losses["feature_distance"] = _INTERVAL * feature_distance(scale(setup.features(found)), features)
    return losses


def statistics_losses(state: State, setup: Setup, drawn: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """What makes new faces, (n, 3, S, S), alike to real ones in the mean: the spectrum and the moments of features."""
    losses = {"spectrum_distance": spectrum_distance(drawn, setup.spectrum)}
    if setup.config.eyes:
        losses["eye_distance"] = state.eyes.loss(drawn, setup.generator(state.step, EYES))
    if setup.config.moments and state.step % _INTERVAL == _INTERVAL // 2:
        with torch.no_grad():
            with setup.autocast():
                averaged = state.average.decoder(codes)
            averaged = setup.statistics(averaged)
        matched = zip(state.moments, setup.statistics(drawn), averaged, strict=True)
        network, textures = (moments(features, of_average) for moments, features, of_average in matched)
        losses["moment_distance"] = _INTERVAL * pseudo_huber(network + _TEXTURES * textures)
    return losses


def note(state: State, losses: dict[str, Tensor]) -> None:
    """Add the losses of a step to the sums, and end the step."""
    zero = torch.zeros((), device=state.sums.device)
    state.sums += torch.stack([losses.get(name, zero).detach().double() for name in LOSSES] + [1 + zero.double()])
    state.step += 1


def prior_learns(state: State, config: RefineConfig) -> bool:
    """Whether the prior is tuned together with the decoder."""
    return state.step * config.batch_size < config.prior_images


def follows(state: State, config: RefineConfig) -> bool:
    """Whether the decoder is done, and the encoder follows."""
    return state.step >= config.adversarial_steps


def follow_step(state: State, setup: Setup) -> None:
    """One step of the encoder on real pictures: the negative ELBO, with the averaged decoder as it is."""
    config, generator, model = setup.config, setup.generator(state.step), state.average
    left = (config.steps - state.step) / (config.steps - config.adversarial_steps)
    state.encoder_optimizer.param_groups[0]["lr"] = config.learning_rate * min(1.0, 2 * left)
    image = mirrored(setup.pictures(config.batch_size, generator), generator)
    with setup.autocast():
        mu, logvar = model.encoder(image)
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        reconstruction = model.decoder(reparameterize(mu, logvar, noise))
    error, dimensions = squared_error(reconstruction, image), image[0].numel()
    likelihood = gaussian_nll(error, optimal_variance(error.mean(), dimensions), dimensions)
    state.encoder_optimizer.zero_grad(set_to_none=True)
    negative_elbo(likelihood, kl_divergence(mu, logvar)).mean().backward()
    state.encoder_optimizer.step()
    note(state, {"squared_error": error.mean() / dimensions})


def mirrored(image: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 3, S, S), each picture as it is or its mirror image."""
    return torch.where(_uniform(len(image), generator)[:, None, None, None] < 0.5, image.flip(3), image)


@torch.no_grad()
def posterior(model: VAE, image: Tensor, generator: torch.Generator) -> Tensor:
    """One z ~ q(z|x) of each picture: (n, 3, S, S) -> (n, latent_dim)"""
    mu, logvar = model.encoder(image)
    return reparameterize(mu, logvar, torch.randn(mu.shape, generator=generator, device=mu.device))


def feature_distance(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Mean squared differences of standardized features, summed over the scales."""
    return torch.stack([functional.mse_loss(f, w) for f, w in zip(found, wanted, strict=True)]).sum()


def pseudo_huber(distance: Tensor) -> Tensor:
    """A squared distance while it is small; beyond `_FAR` it grows like its root. Drawings begin a thousand times as
    far from real ones as faces that the model knows, and nothing else would count."""
    return _FAR * (torch.sqrt(1 + 2 * distance / _FAR) - 1)


def log_spectrum(image: Tensor) -> Tensor:
    """(n, 3, S, S) -> (3, S/8, S/8): the logarithm of the mean power of luma and of both chromas, each over 4x4
    frequencies, from low to high along rows and columns."""
    planes = torch.einsum("nchw,pc->nphw", image.float(), torch.tensor(_YCBCR, device=image.device))
    power = torch.fft.rfft2(planes).abs().square().mean(0)  # rows: 0 ... S/2 and back, columns: 0 ... S/2
    half = power.shape[-1]
    power = (power[:, 1:half] + power[:, half - 1 :].flip(1)) / 2
    return torch.log(functional.avg_pool2d(power[..., 1:], 4) + 1e-6)


def mean_spectrum(real: Tensor, config: RefineConfig) -> Tensor:
    """The mean `log_spectrum` of some batches of real pictures, uint8 (N, 3, S, S), as large as those of a step."""
    some = _spread(real, _COMPARED)
    return torch.stack([log_spectrum(to_unit(batch)) for batch in some.split(config.batch_size)]).mean(0)


def spectrum_distance(drawn: Tensor, real: Tensor) -> Tensor:
    """Squared differences of logarithms of power: summed over the frequencies, and the mean of luma and both chromas.

    Decoders that double the size leave patterns of alternating pixels and noise in the colors, which the feature
    network hardly sees (Durall, Keuper & Keuper, "Watch your up-convolution", 2020). drawn: (n, 3, S, S); real: by
    `log_spectrum`.
    """
    return (log_spectrum(drawn) - real).square().sum((1, 2)).mean()


def make_setup(config: RefineConfig, prior: Prior, real: Tensor, mixed: bool) -> Setup:
    """What a run needs beside its state, on the device of `real`: see `Setup`."""
    precision = torch.bfloat16 if mixed else torch.float32
    network, matched = (FeatureNetwork(name, precision).to(real.device) for name in ("lite0", "lite1"))
    draws, covered = (Draws(of, config, real.device) for of in (dataclasses.replace(prior, flow=None), prior))
    textures = Textures().to(real.device)
    spectrum = mean_spectrum(real, config)
    return Setup(config, network, matched, textures, real, draws, covered, spectrum, mixed)


def make_state(setup: Setup, networks: TrainConfig, start: VAE | None) -> State:
    """The networks, their averages and their optimizers; Adam without momentum, as the paper has it."""
    config, device = setup.config, setup.real.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = with_fine_decoder(copy.deepcopy(start)) if start is not None else VAE.from_config(networks)
        critic = Critic(setup.network.channels)
        prior = learned_prior(setup.covered.prior, config)
        eyes = Eyes().eval().requires_grad_(False)
    model.to(device=device, memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    critic.to(device)
    prior.to(device)
    model.eval().encoder.requires_grad_(False)
    matched = zip(setup.statistics(to_unit(setup.real[:1])), _MATCHED_DIRECTIONS, strict=True)
    moments = nn.ModuleList(FeatureMoments(found.shape[1], count, _MATCHED_AVERAGE) for found, count in matched)
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
    networks_and_priors = model, average, prior, average_prior, critic, moments.to(device), eyes.to(device)
    return State(*networks_and_priors, optimizer, critic_optimizer, encoder_optimizer, sums)


@torch.no_grad()
def calibrate(state: State, setup: Setup) -> None:
    """Measure the scale of each feature, and the moments that are matched, on some real pictures."""
    chosen = _spread(setup.real, _CALIBRATION)
    state.critic.projection.calibrate(
        setup.features(augment(to_unit(chosen), setup.generator(_BEFORE), setup.config.noise))
    )
    batches = [setup.statistics(to_unit(batch)) for batch in _spread(setup.real, _MATCHED).split(_CALIBRATION)]
    for moments, found in zip(state.moments, zip(*batches, strict=True), strict=True):
        assert isinstance(moments, FeatureMoments)
        moments.calibrate(torch.cat(found))


def imitate(state: State, start: VAE, setup: Setup) -> None:
    """Teach a decoder of another kind than that of `start` to draw like it; nothing to do if they are of one kind."""
    if start.decoder_kind == state.model.decoder_kind:
        return
    optimizer = torch.optim.Adam(state.model.decoder.parameters(), 1e-3, betas=(0.9, 0.99))
    for step in tqdm(range(_IMITATION), desc="imitating the decoder as it was", unit="step", disable=None):
        generator = setup.generator(_BEFORE + 1 + step)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1.01 - step / _IMITATION)
        kept = setup.pictures(setup.config.batch_size // 2, generator)
        new = state.average_prior(setup.draws(0, generator))
        codes = torch.cat([new, posterior(start, kept, generator)])
        with setup.autocast():
            with torch.no_grad():
                wanted = start.decoder(codes)
            error = functional.mse_loss(state.model.decoder(codes), wanted)
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
    state.average.load_state_dict(state.model.state_dict())


@torch.no_grad()
def update_average(state: State, config: RefineConfig) -> None:
    """Mix the newest weights of decoder and prior into their average; the first steps count more."""
    kept = min(0.5 ** (config.batch_size / config.average), (state.step + 1) / (state.step + 10))
    averages, newest = state.average.decoder.parameters(), state.model.decoder.parameters()
    torch._foreach_lerp_(list(averages), list(newest), 1 - kept)
    if prior_learns(state, config):
        torch._foreach_lerp_(list(state.average_prior.parameters()), list(state.prior.parameters()), 1 - kept)


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
    for name in ("prior", "average_prior", "critic", "moments", "eyes"):
        try:
            _parts(state)[name].load_state_dict(part_of(saved.tensors, name))
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


def close_epoch(state: State, epoch: int, config: RefineConfig) -> dict[str, Any]:
    """End the epoch in `state` and return its figures; TrainingError if a loss is not finite."""
    figures, steps = means(state), int(state.sums[-1])
    if state.step > config.adversarial_steps:
        figures = {"squared_error": figures["squared_error"]}
    if not all(map(math.isfinite, figures.values())):
        raise TrainingError(f"step {state.step}: a loss is not finite; continue from the last checkpoint with --resume")
    speed = steps * config.batch_size / max(state.seconds, 1e-9)
    state.sums.zero_()
    state.seconds = 0.0
    return {
        "epoch": -(-state.step // epoch),
        "step": state.step,
        "images": state.step * config.batch_size,
        **{f"train_{name}": round(value, 6) for name, value in figures.items()},
        "images_per_second": round(speed, 1),
    }


@torch.no_grad()
def draw_sheet(state: State, run: Path) -> None:
    """New faces of the same codes at each checkpoint; progress.png has the first row of each sheet."""
    folder, device = run / FIGURES / "new_faces", state.sums.device
    codes = torch.from_numpy(state.average_prior.to_prior().sample(SHEET, rng=0)).to(device)
    folder.mkdir(parents=True, exist_ok=True)
    sheet = image_grid(to_pixels(state.average.decoder(codes)), columns=_COLUMNS)
    save_png(sheet, folder / f"{state.step:09d}.png")
    height = len(sheet) // (len(codes) // _COLUMNS)
    rows = [load_image(path)[:height] for path in sorted(folder.glob("*.png"))]
    save_png(np.concatenate(rows), run / FIGURES / "progress.png")


def describe(record: dict[str, Any]) -> str:
    """A line about an epoch."""
    critic = record.get("train_critic_loss")
    done = "the encoder follows" if critic is None else f"critic {critic:.2f}"
    return (
        f"{record['images']:,d} pictures: {done}, held out "
        f"{record['held_out_psnr']:.2f} dB, {record['held_out_bits_per_dim']:.3f} bits/dim; "
        f"{record['images_per_second']:.0f} images/s"
    )


def _parts(state: State) -> dict[str, nn.Module]:
    names = ("model", "average", "prior", "average_prior", "critic", "moments", "eyes")
    return {name: getattr(state, name) for name in names}


def _optimizers(state: State) -> dict[str, torch.optim.Adam]:
    names = ("optimizer", "critic_optimizer", "encoder_optimizer")
    return {name: getattr(state, name) for name in names}


def _spread(pictures: Tensor, count: int) -> Tensor:
    """Up to `count` of the pictures, at even distances."""
    return pictures[:: max(1, len(pictures) // count)][:count]


def _indices(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, count, (size,), generator=generator, device=generator.device)


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator, device=generator.device)


def _mean(scores: list[Tensor]) -> Tensor:
    return torch.stack([score.detach().float().mean() for score in scores]).mean()
