from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hub_stand_in import hub
from PIL import Image
from tiny_model import DIM, PIXELS, SIZE, build_model

from vae_runtime import (
    VAE,
    ConfigError,
    DeviceError,
    DeviceWarning,
    ImageError,
    InputError,
    ModelConfig,
    ModelFileError,
    latent,
)
from vae_runtime.directions import Directions
from vae_runtime.errors import InputTypeError
from vae_runtime.ort import devices
from vae_runtime.prior import Prior


@pytest.fixture(scope="module")
def vae(tiny):
    return VAE.load(tiny.folder, device="cpu")


@pytest.fixture
def faces(rng):
    return rng.integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


def test_attributes(vae):
    assert (vae.device, vae.latent_dim, vae.image_size, vae.config.name) == ("cpu", DIM, SIZE, "tiny")
    assert "tiny" in repr(vae)


def test_encode_is_the_graph(vae, tiny, faces):
    mu, logvar = vae.encode(faces)
    assert mu.dtype == logvar.dtype == np.float32
    for got, expected in zip((mu, logvar), tiny.encode(faces), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_decode_is_the_graph(vae, tiny, rng):
    z = rng.normal(size=(3, DIM)).astype(np.float32)
    decoded = vae.decode(z)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (3, SIZE, SIZE, 3)
    np.testing.assert_allclose(decoded.astype(int), tiny.decode(z).astype(int), atol=1)
    np.testing.assert_array_equal(vae.decode(z[0]), decoded[:1])


def test_every_form_of_images_gives_the_same(vae, faces, tmp_path):
    expected, _ = vae.encode(faces)
    paths = []
    for index, face in enumerate(faces):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(face).save(paths[-1])
    forms = [
        list(faces),
        paths,
        [str(path) for path in paths],
        tuple(path.read_bytes() for path in paths),
        (Image.open(path) for path in paths),
        iter(paths),
    ]
    for form in forms:
        np.testing.assert_array_equal(vae.encode(form)[0], expected)
    for single in (faces[0], paths[0], str(paths[0]), paths[0].read_bytes(), Image.open(paths[0])):
        np.testing.assert_allclose(vae.encode(single)[0], expected[:1], atol=1e-6)


def test_pictures_of_other_sizes_pass_the_funnel(vae, rng):
    photo = rng.integers(0, 256, (40, 60, 3), np.uint8)
    prepared = vae.prepare(photo)
    assert prepared.shape == (1, SIZE, SIZE, 3)
    np.testing.assert_array_equal(vae.encode(photo)[0], vae.encode(prepared)[0])


def test_reconstruct_is_decode_of_mu_and_always_the_same(vae, faces):
    first = vae.reconstruct(faces)
    np.testing.assert_array_equal(first, vae.decode(vae.encode(faces)[0]))
    np.testing.assert_array_equal(first, vae.reconstruct(faces))


def test_sample_follows_its_seed(vae):
    np.testing.assert_array_equal(vae.sample(4, rng=7), vae.sample(4, rng=7))
    assert (vae.sample(4, rng=7) != vae.sample(4, rng=8)).any()
    z = np.random.default_rng(7).standard_normal((4, DIM)).astype(np.float32)
    np.testing.assert_array_equal(vae.sample(4, rng=7), vae.decode(z))
    cold = vae.sample(3, rng=7, temperature=0)
    np.testing.assert_array_equal(cold, vae.decode(np.zeros((3, DIM))))


def test_interpolate_goes_from_a_to_b(vae, faces):
    path = vae.interpolate(faces[0], faces[1], steps=6)
    assert path.shape == (6, SIZE, SIZE, 3)
    np.testing.assert_array_equal(path[[0, -1]], vae.reconstruct(faces[:2]))
    mu, _ = vae.encode(faces[:2])
    straight = vae.interpolate(faces[0], faces[1], steps=6, method="lerp")
    np.testing.assert_array_equal(straight, vae.decode(latent.interpolate(mu[0], mu[1], 6, "lerp")))


def test_edit_moves_along_a_direction(vae, faces, rng):
    mu, _ = vae.encode(faces)
    vector = rng.normal(size=DIM)
    np.testing.assert_array_equal(vae.edit(faces, vector, 0), vae.reconstruct(faces))
    expected = vae.decode(mu + 1.5 * vector.astype(np.float32))
    assert np.abs(vae.edit(faces, vector, 1.5).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(vae.edit(faces, "z2", -2), vae.decode(mu - 2 * np.eye(DIM, dtype=np.float32)[2]))


@pytest.mark.parametrize("direction", ["smile", "z4", "z-1", "z", "", np.zeros(DIM + 1), "z99999999999999"])
def test_directions_that_are_not_there_are_refused(vae, faces, direction):
    with pytest.raises(InputError, match="direction"):
        vae.edit(faces, direction)


def test_the_anomaly_score_is_the_negative_elbo_at_mu(vae, tiny, faces):
    mu, logvar = tiny.encode(faces)
    x, sigma = faces.reshape(len(faces), -1) / 255, vae.config.sigma
    again = vae.decode(mu).reshape(len(faces), -1) / 255
    gaussian = (np.log(sigma * np.sqrt(2 * np.pi)) + ((x - again) / sigma) ** 2 / 2).sum(1)
    kl = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(1)
    np.testing.assert_allclose(vae.anomaly_score(faces), gaussian + kl, rtol=1e-5)


def with_extras(folder, **files):
    """A model folder with more files, named in config.json: prior=Prior(...), directions=Directions(...)."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    for key, value in files.items():
        value.save(folder / f"{key}.npz")
        fields["files"][f"{key}.npz"] = hashlib.sha256((folder / f"{key}.npz").read_bytes()).hexdigest()
    path.write_text(json.dumps(fields))
    return folder


def test_a_model_with_a_fitted_prior_and_directions(tmp_path, rng, faces):
    prior = Prior([0.5, 0.5], rng.normal(size=(2, DIM)), np.stack([np.eye(DIM) * 0.1] * 2))
    smile = Directions(("smile",), rng.normal(size=(1, DIM)))
    vae = VAE.load(with_extras(build_model(tmp_path / "m").folder, prior=prior, directions=smile), device="cpu")
    np.testing.assert_array_equal(vae.sample(5, rng=3), vae.decode(prior.sample(5, rng=3)))
    unit = np.random.default_rng(3).standard_normal((5, DIM)).astype(np.float32)
    np.testing.assert_array_equal(vae.sample(5, rng=3, prior="unit"), vae.decode(unit))
    np.testing.assert_array_equal(vae.edit(faces, "smile", 2), vae.edit(faces, smile["smile"], 2))
    with pytest.raises(InputError, match="did you mean 'smile'"):
        vae.edit(faces, "smle")
    with pytest.raises(InputError, match="'model'"):
        vae.sample(1, prior="normal")
    assert ModelConfig.from_json(vae.config.to_json()) == vae.config


@pytest.mark.parametrize("extra", ["prior", "directions"])
def test_extras_of_another_size_or_content_are_refused(tmp_path, extra):
    wrong = {"prior": Prior.standard(DIM + 1), "directions": Directions(("a",), np.ones((1, DIM + 1)))}[extra]
    folder = with_extras(build_model(tmp_path / "m").folder, **{extra: wrong})
    with pytest.raises(ModelFileError, match=rf"{extra}\.npz: for codes of 5"):
        VAE.load(folder, device="cpu")
    (folder / f"{extra}.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelFileError, match="git lfs pull"):
        VAE.load(folder, device="cpu")


@pytest.mark.parametrize("direction", [np.zeros((2, DIM)), np.zeros(DIM + 1), "z", "z4", "z0000012", "z99999999999"])
def test_what_is_no_direction_of_this_model_is_refused(vae, direction):
    with pytest.raises(InputError, match="direction"):
        vae.direction(direction)


@pytest.mark.parametrize("former", [{"prior": "prior.npz"}, {"prior": "prior.npz", "directions": None}])
def test_a_config_that_names_its_prior_by_a_key_still_loads(tmp_path, former):
    folder = with_extras(build_model(tmp_path / "m").folder, prior=Prior([1.0], np.ones((1, DIM))))
    rewrite(folder, **former)
    assert not VAE.load(folder, device="cpu").prior.is_standard


def test_the_opset_must_be_the_one_of_the_config(tmp_path):
    folder = build_model(tmp_path / "m").folder
    rewrite(folder, opset=21)
    with pytest.raises(ModelFileError, match="opset 20, config"):
        VAE.load(folder, device="cpu")


def test_empty_input_gives_empty_output(vae):
    assert vae.encode([])[0].shape == (0, DIM)
    assert vae.reconstruct([]).shape == (0, SIZE, SIZE, 3)
    assert vae.decode(np.zeros((0, DIM))).shape == (0, SIZE, SIZE, 3)
    assert vae.sample(0).shape == (0, SIZE, SIZE, 3)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_large_batches_are_cut_and_equal_the_singles(vae, n, rng):
    z = rng.normal(size=(n, DIM)).astype(np.float32)
    whole = vae.decode(z)
    np.testing.assert_allclose(whole.astype(int), np.concatenate([vae.decode(row) for row in z]).astype(int), atol=1)


@pytest.mark.parametrize("z", [np.zeros(DIM + 1), np.zeros((2, 3)), np.zeros((1, 1, DIM)), 3.0, []])
def test_codes_of_other_shapes_are_refused(vae, z):
    with pytest.raises(InputError, match=rf"\(n, {DIM}\)"):
        vae.decode(z)


@pytest.mark.parametrize("number", [1.1e6, -1e30, 1e300, 2**62])
def test_codes_beyond_any_prior_are_refused_with_their_index(vae, number):
    with pytest.raises(InputError, match=r"at index \(1, 2\)"):
        vae.decode([[0.0] * DIM, [0.0, 0.0, number, 0.0]])


def test_codes_that_are_no_numbers_are_refused(vae):
    with pytest.raises(InputError, match=r"\(1, 2\)"):
        vae.decode([[0.0] * DIM, [0.0, 0.0, np.nan, 0.0]])
    with pytest.raises(InputTypeError):
        vae.decode(None)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4", ">f8"])
def test_codes_of_any_real_type_and_byte_order(vae, dtype):
    z = np.arange(2 * DIM).reshape(2, DIM)
    np.testing.assert_array_equal(vae.decode(z.astype(dtype)), vae.decode(z.astype(np.float32)))
    np.testing.assert_array_equal(vae.decode(np.asfortranarray(z)), vae.decode(z))


def test_errors_say_which_picture(vae, faces, tmp_path):
    with pytest.raises(ImageError, match=r"images\[2\]: .*gone"):
        vae.encode([faces[0], faces[1], tmp_path / "gone.png"])
    with pytest.raises(FileNotFoundError):
        vae.encode(tmp_path / "gone.png")
    with pytest.raises(InputTypeError, match=r"images\[0\]"):
        vae.encode([None])
    for wrong in (None, 5):
        with pytest.raises(InputTypeError, match="images"):
            vae.encode(wrong)


@pytest.mark.parametrize(
    "call", [lambda v: v.sample(-1), lambda v: v.sample(10**9), lambda v: v.sample(1, temperature=-1)]
)
def test_sample_refuses_numbers_out_of_range(vae, call):
    with pytest.raises(InputError):
        call(vae)


@pytest.mark.parametrize(
    "call", [lambda v: v.sample(1.5), lambda v: v.sample(1, temperature="hot"), lambda v: v.sample(True)]
)
def test_sample_refuses_other_types(vae, call):
    with pytest.raises(InputTypeError):
        call(vae)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda v: v.sample(1, prior=np.zeros(3)), InputError, "prior"),
        (lambda v: v.sample(1, temperature=10**400), InputError, "temperature"),
        (lambda v: v.iter_encode([], on_error=np.zeros(2)), InputError, "on_error"),
        (lambda v: v.iter_decode(None), InputTypeError, "codes"),
        (lambda v: v.iter_decode(np.array(1.0)), InputTypeError, "codes"),
    ],
)
def test_arguments_of_other_types_are_refused_by_name(vae, call, error, named):
    with pytest.raises(error, match=f"^{named}: got"):
        call(vae)


@pytest.mark.parametrize("name", ["variant", "prior"])
def test_arrays_in_place_of_names_are_refused(tiny, name):
    with pytest.raises(InputError, match=f"^{name}: got"):
        VAE.load(tiny.folder, device="cpu", **{name: np.zeros(3)})


def test_threads_share_a_model(vae, rng):
    z = rng.normal(size=(8, 3, DIM)).astype(np.float32)
    expected = [vae.decode(part) for part in z]
    wrong: list[int] = []

    def work(index: int) -> None:
        wrong.extend(index for _ in range(50) if (vae.decode(z[index]) != expected[index]).any())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- model folders --------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelFileError, match="no such folder"):
        VAE.load(tmp_path / "nothing")
    with pytest.raises(OSError, match=r"config\.json"):
        VAE.load(tmp_path)
    with pytest.raises(InputTypeError):
        VAE.load(3)
    with pytest.raises(ModelFileError, match=r"aaa: (cannot be read|no such folder)"):
        VAE.load("a" * 5000)


@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "SHA-256"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "SHA-256"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 128]), "SHA-256"),
        (lambda data: b"", "empty"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (lambda data: b"<!DOCTYPE html>", "web page"),
        (None, "cannot be read"),
    ],
)
def test_damaged_graphs_are_refused_before_they_are_opened(tmp_path, file, damage, said):
    folder = build_model(tmp_path / "m").folder
    path = folder / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelFileError, match=said) as caught:
        VAE.load(folder, device="cpu")
    assert file in str(caught.value)


def test_graphs_of_two_exports_are_refused(tmp_path):
    first, second = build_model(tmp_path / "a", model_id="a"), build_model(tmp_path / "b", model_id="b", seed=1)
    shutil.copy(second.folder / "decoder.onnx", first.folder)
    with pytest.raises(ModelFileError, match="another export"):
        VAE.load(first.folder, device="cpu")


def rewrite(folder, **changes):
    """config.json with other values, and digests that fit the files."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    fields["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in fields["files"]}
    path.write_text(json.dumps(fields))


def test_ids_in_the_graphs_must_be_the_one_of_the_config(tmp_path):
    first, second = build_model(tmp_path / "a", model_id="a"), build_model(tmp_path / "b", model_id="b", seed=1)
    shutil.copy(second.folder / "decoder.onnx", first.folder)
    rewrite(first.folder)
    with pytest.raises(ModelFileError, match=r"decoder\.onnx.*one export"):
        VAE.load(first.folder, device="cpu")


@pytest.mark.parametrize("changes", [{"latent_dim": DIM + 1}, {"image_size": SIZE * 2}])
def test_graphs_must_have_the_shapes_of_the_config(tmp_path, changes):
    folder = build_model(tmp_path / "m").folder
    rewrite(folder, **changes)
    with pytest.raises(ModelFileError, match="batch"):
        VAE.load(folder, device="cpu")


def test_graphs_in_each_others_place_are_refused(tmp_path):
    folder = build_model(tmp_path / "m").folder
    (folder / "encoder.onnx").rename(folder / "x")
    (folder / "decoder.onnx").rename(folder / "encoder.onnx")
    (folder / "x").rename(folder / "decoder.onnx")
    rewrite(folder)
    with pytest.raises(ModelFileError, match="inputs are"):
        VAE.load(folder, device="cpu")


@pytest.mark.parametrize("data", [b"\x08\x0a" + bytes(50), b"\xff" * 100, "ö".encode("latin-1") * 20])
def test_bytes_that_are_no_graph_are_one_class_of_error(tmp_path, data):
    folder = build_model(tmp_path / "m").folder
    (folder / "encoder.onnx").write_bytes(data)
    rewrite(folder)
    with pytest.raises(ModelFileError, match=r"encoder\.onnx"):
        VAE.load(folder, device="cpu")


def test_a_prior_that_is_no_npz_is_refused(tmp_path):
    folder = build_model(tmp_path / "m").folder
    (folder / "prior.npz").write_bytes(b"x")
    fields = json.loads((folder / "config.json").read_text())
    fields["files"]["prior.npz"] = hashlib.sha256(b"x").hexdigest()
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelFileError, match=r"prior\.npz: not a \.npz file"):
        VAE.load(folder, device="cpu")


def test_additional_keys_of_this_format_are_accepted_and_newer_formats_refused(tmp_path):
    folder = build_model(tmp_path / "m").folder
    rewrite(folder, added_later={"a": [1]})
    VAE.load(folder, device="cpu")
    rewrite(folder, format_version=2)
    with pytest.raises(ConfigError, match="format_version"):
        VAE.load(folder, device="cpu")


@pytest.mark.slow
def test_a_model_of_the_hub(tmp_path, tiny):
    """Through the real huggingface_hub client, against a local stand-in of the Hub's HTTP interface; then offline."""
    code = "from vae_runtime import VAE; print(VAE.load('hf:someone/tiny', device='cpu').config.name)"
    with hub("models", "someone/tiny", tiny.folder) as (endpoint, log):
        env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "PATH": "/usr/bin:/bin"}
        online = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert online.stdout == "tiny\n", online.stderr
        assert any("decoder.onnx" in line for line in log)
        missing = code.replace("someone/tiny", "someone/nothing")
        refused = subprocess.run([sys.executable, "-c", missing], env=env, capture_output=True, text=True)
        assert "HubError: hf:someone/nothing" in refused.stderr
    offline = subprocess.run(
        [sys.executable, "-c", code], env=env | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert offline.stdout == "tiny\n", offline.stderr


@pytest.mark.parametrize("address", ["hf:", "hf:name", "hf:a/b/c", "hf:../b", "hf:a/b@", "hf:a/b c"])
def test_bad_addresses_are_refused(address):
    with pytest.raises(InputError, match="hf:owner/name"):
        VAE.load(address)


# ---- devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA", None, 0])
def test_unknown_devices_are_refused(tiny, device):
    with pytest.raises(InputError, match="device"):
        VAE.load(tiny.folder, device=device)


@pytest.mark.skipif(devices.cuda_driver().gpus, reason="this machine has a GPU")
def test_without_a_gpu_cuda_raises_and_auto_says_nothing(tiny):
    with pytest.raises(DeviceError, match=r"cuda:0.*(driver|\[gpu\])"):
        VAE.load(tiny.folder, device="cuda")
    devices.warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert VAE.load(tiny.folder).device == "cpu"


def test_a_driver_that_cannot_be_used_is_one_warning(tiny, monkeypatch):
    monkeypatch.setattr(devices, "cuda_driver", lambda: devices.Driver("13.0", ()))
    devices.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert VAE.load(tiny.folder).device == "cpu"
        VAE.load(tiny.folder)
    assert [warning.category for warning in caught] == [DeviceWarning]
    assert "on the CPU" in str(caught[0].message)


def test_the_floats_of_the_graphs_are_at_hand(vae, rng):
    (image,) = vae.decoder.run(rng.normal(size=(2, DIM)).astype(np.float32))
    assert image.dtype == np.float32
    assert image.reshape(2, -1).shape == (2, PIXELS)


def test_the_bundled_model():
    vae = VAE.load(device="cpu")
    faces = vae.sample(4, rng=0)
    assert faces.shape == (4, vae.image_size, vae.image_size, 3)
    assert faces.std() > 20  # a picture, not a grey field
