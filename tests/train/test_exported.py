"""Networks out of exported graphs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_runtime
from vae_train.engine.initial import load_initial
from vae_train.errors import UsageError
from vae_train.model.exported import load_exported, with_fine_decoder
from vae_train.model.networks import VAE, fold_batch_norm

SHIPPED = ["anime-32", "anime-64", "avatars-64"]


def shipped(name):
    return Path(__file__).parents[2] / "exported" / name


@pytest.mark.parametrize("name", SHIPPED)
def test_the_networks_answer_as_the_graphs_do(name, rng):
    folder = shipped(name)
    _, model = load_exported(folder)
    runtime = vae_runtime.VAE.load(folder, device="cpu")
    image = rng.random((3, 3, runtime.image_size, runtime.image_size), np.float32)
    z = rng.normal(size=(3, runtime.latent_dim)).astype(np.float32)
    with torch.no_grad():
        mu, logvar = model.encoder(torch.from_numpy(image))
        decoded = model.decoder(torch.from_numpy(z))
    for got, expected in zip((mu, logvar), runtime.encoder.run(image), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(decoded, runtime.decoder.run(z)[0], atol=1e-5)


def test_folding_keeps_answers_and_names():
    model = VAE(64, 16, "base", "fine")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    model.eval()
    image, eps = torch.rand(2, 3, 64, 64), torch.randn(2, 16)
    with torch.no_grad():
        before = model(image, eps)
        fold_batch_norm(model)
        after = model(image, eps)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == VAE(64, 16, "base", "fine", batch_norm=False).state_dict().keys()


def test_a_fine_decoder_keeps_what_both_share():
    model = VAE(64, 16, "base", batch_norm=False).eval()
    fine = with_fine_decoder(model)
    assert fine.decoder_kind == "fine"
    assert with_fine_decoder(fine) is fine
    z = torch.randn(2, model.latent_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wide = fine.decoder.layers[3]
        wide.layers[1], wide.layers[4] = model.decoder.layers[3].layers[1], model.decoder.layers[3].layers[4]
        # Up to the channels that were left out, the features at half the side are the same: layers 0-8 and 0-9.
        torch.testing.assert_close(fine.decoder.layers[:10](z), model.decoder.layers[:9](z))
    with pytest.raises(UsageError, match="--decoder"):
        with_fine_decoder(load_exported(shipped("anime-32"))[1])


def test_another_preset_is_refused(tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(shipped("anime-64"), folder)
    config = vae_runtime.ModelConfig.load(folder)
    dataclasses.replace(config, preset="classic").save(folder)
    with pytest.raises(UsageError, match="classic"):
        load_exported(folder)
    dataclasses.replace(config, preset="of-another-version").save(folder)
    with pytest.raises(UsageError, match="of-another-version"):
        load_exported(folder)


def test_a_model_without_its_encoder_is_not_taken_for_a_run(tmp_path):
    shutil.copytree(shipped("anime-32"), tmp_path / "model")
    (tmp_path / "model" / "encoder.onnx").unlink()
    with pytest.raises(UsageError, match=r"encoder\.onnx"):
        load_initial(str(tmp_path / "model"))
