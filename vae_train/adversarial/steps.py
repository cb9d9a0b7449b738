"""The steps of the second stage: of the critic and the decoder, and, when the decoder is done, of the encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vae_train.adversarial.config import RefineConfig
from vae_train.adversarial.critic import augment, critic_loss, generator_loss
from vae_train.adversarial.matching import FeatureMoments
from vae_train.adversarial.spectrum import spectrum_distance
from vae_train.adversarial.state import LOSSES, Setup, State
from vae_train.engine.rng import EYES
from vae_train.model.losses import gaussian_nll, kl_divergence, negative_elbo, optimal_variance, squared_error
from vae_train.model.networks import VAE, reparameterize

WARM_UP = 60
"""First steps of a run, in which the critic learns alone."""
_TEXTURES = 0.25  # weight of the means of textures; at 1 contrast swung
_FAR = 0.05  # distance of moments from which on it grows like its root
_MATCHED_AVERAGE = 1000  # half-life of the moving averages of moments, in pictures
_SETTLED_AVERAGE = 500  # the same while the decoder settles
_INTERVAL = 4  # some losses are computed in one step of so many, and weigh so many times more


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
    if setup.config.mouth:
        losses["mouth_distance"] = state.mouth.loss(drawn)
    if setup.config.moments and state.step % _INTERVAL == _INTERVAL // 2:
        with torch.no_grad():
            with setup.autocast():
                averaged = state.average.decoder(codes)
            averaged = setup.statistics(averaged)
        matched = zip(state.moments, setup.statistics(drawn), averaged, strict=True)
        distances = [moments(features, other, _MATCHED_AVERAGE) for moments, features, other in matched]
        losses["moment_distance"] = _INTERVAL * moment_distance(distances, setup.config)
    return losses


def note(state: State, losses: dict[str, Tensor]) -> None:
    """Add the losses of a step to the sums, and end the step."""
    zero = torch.zeros((), device=state.sums.device)
    state.sums += torch.stack([losses.get(name, zero).detach().double() for name in LOSSES] + [1 + zero.double()])
    state.step += 1


def prior_learns(state: State, config: RefineConfig) -> bool:
    """Whether the prior is tuned together with the decoder."""
    return state.step * config.batch_size < config.prior_images


def settles(state: State, config: RefineConfig) -> bool:
    """Whether the critic is done, and moments alone count."""
    return config.adversarial_steps <= state.step < config.drawing_steps


def settle_step(state: State, setup: Setup) -> None:
    """One step of the averaged decoder, and of its prior if that has learned, towards the moments of real faces (Li,
    Swersky & Zemel, "Generative moment matching networks", 2015).

    With a critic, moments stay where both pull alike. Alone, and at a small rate that falls to 0, they come closer; so
    few and small steps change nothing else.
    """
    config, generator = setup.config, setup.generator(state.step)
    left = (config.drawing_steps - state.step) / (config.drawing_steps - config.adversarial_steps)
    for group in state.settle_optimizer.param_groups:
        group["lr"] = config.settle_rate * left
    if state.step == config.adversarial_steps:
        for moments in state.moments:
            assert isinstance(moments, FeatureMoments)
            moments.restart()
    decoder, prior = state.average.decoder, state.average_prior
    decoder.requires_grad_(True)
    prior.requires_grad_(bool(config.prior_images))
    codes = prior(setup.draws(state.step, generator))
    with setup.autocast():
        drawn = decoder(codes)
    matched = zip(state.moments, setup.statistics(drawn), strict=True)
    distances = [moments(features, features.detach(), _SETTLED_AVERAGE) for moments, features in matched]
    loss = moment_distance(distances, config)
    state.settle_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.settle_optimizer.step()
    decoder.requires_grad_(False)
    prior.requires_grad_(False)
    note(state, {"moment_distance": loss})


def follows(state: State, config: RefineConfig) -> bool:
    """Whether the decoder is done, and the encoder follows."""
    return state.step >= config.drawing_steps


def follow_step(state: State, setup: Setup) -> None:
    """One step of the encoder on real pictures: the negative ELBO, with the averaged decoder as it is."""
    config, generator, model = setup.config, setup.generator(state.step), state.average
    left = (config.steps - state.step) / (config.steps - config.drawing_steps)
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


def moment_distance(distances: list[Tensor], config: RefineConfig) -> Tensor:
    """The distances that the moments of `Setup.matchers` have from real ones, as one: ()."""
    network, textures, *mean_picture = distances
    distance = pseudo_huber(network + _TEXTURES * textures)
    return distance + sum(config.pixels * pseudo_huber(each) for each in mean_picture)


def pseudo_huber(distance: Tensor) -> Tensor:
    """A squared distance while it is small; beyond `_FAR` it grows like its root. Drawings begin a thousand times as
    far from real ones as faces that the model knows, and nothing else would count."""
    return _FAR * (torch.sqrt(1 + 2 * distance / _FAR) - 1)


@torch.no_grad()
def update_average(state: State, config: RefineConfig) -> None:
    """Mix the newest weights of decoder and prior into their average; the first steps count more."""
    kept = min(0.5 ** (config.batch_size / config.average), (state.step + 1) / (state.step + 10))
    averages, newest = state.average.decoder.parameters(), state.model.decoder.parameters()
    torch._foreach_lerp_(list(averages), list(newest), 1 - kept)
    if prior_learns(state, config):
        torch._foreach_lerp_(list(state.average_prior.parameters()), list(state.prior.parameters()), 1 - kept)


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator, device=generator.device)


def _mean(scores: list[Tensor]) -> Tensor:
    return torch.stack([score.detach().float().mean() for score in scores]).mean()
