"""Inversion, inpainting and super-resolution: what is known counts, what is hidden does not, and nothing gets worse."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
from PIL import Image
from tiny_model import DIM, SIZE, build_model

from vae_runtime import VAE, ImageError, InputError
from vae_runtime.errors import InputTypeError, ModelFileError
from vae_runtime.inversion import adam, block_means
from vae_runtime.masks import each_mask, fit_mask, prepare_masked
from vae_runtime.ort.runners import BoundRunner
from vae_runtime.prior import Prior


@pytest.fixture
def vae(tiny):
    return VAE.load(tiny.folder, device="cpu", threads=2)


@pytest.fixture
def faces(rng):
    return rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def corner() -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[:4, 4:] = True
    return mask


def squares(vae, z, faces):
    return ((vae.decode(z) / 255 - faces / 255) ** 2).sum((1, 2, 3))


# ---- the graph ------------------------------------------------------------------------------------------------------


def test_loss_and_gradient_are_those_of_the_closed_form(vae, tiny, rng):
    """image = sigmoid(z V), so d loss / dz = sum_i 2 w_i (y_i - x_i) y_i (1 - y_i) V_i."""
    z = rng.normal(size=(2, DIM))
    image, weight = rng.random((2, 3, SIZE, SIZE)), rng.random((2, 1, SIZE, SIZE))
    y, x = 1 / (1 + np.exp(-z @ tiny.v.astype(float))), image.reshape(2, -1)
    w = np.broadcast_to(weight, image.shape).reshape(2, -1)
    loss, gradient = vae.inverse.run(*(part.astype(np.float32) for part in (z, image, weight)))
    np.testing.assert_allclose(loss, (w * (y - x) ** 2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(gradient, (2 * w * (y - x) * y * (1 - y)) @ tiny.v.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3, 64, 100])
def test_many_rows_are_single_ones(vae, count, rng):
    given = [rng.random((count, *shape), np.float32) for shape in vae.inverse.inputs.values()]
    loss, gradient = vae.inverse.run(*given)
    assert (loss.shape, gradient.shape) == ((count,), (count, DIM))
    for row in range(0, count, 17):
        one = vae.inverse.run(*(part[row : row + 1] for part in given))
        np.testing.assert_allclose(one[0], loss[row : row + 1], rtol=1e-5)
        np.testing.assert_allclose(one[1], gradient[row : row + 1], rtol=1e-4, atol=1e-6)


def test_three_inputs_run_bound_to_a_devices_memory(vae, rng):
    graph = vae.inverse
    runner = BoundRunner(graph.session, ("cpu", 0), graph.inputs, graph.outputs, cuda_graph=False)
    for count in (3, 1, 3):
        given = [rng.random((count, *shape), np.float32) for shape in graph.inputs.values()]
        for got, expected in zip(runner._run(*given), graph.run(*given), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_it_is_opened_once_when_first_used(tiny, faces):
    vae = VAE.load(tiny.folder, device="cpu")
    assert vae.has_inverse
    assert vae._inverse is None
    found = []
    threads = [threading.Thread(target=lambda: found.append(vae.inverse)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    expected = vae.invert(faces, steps=3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(vae)).invert(faces, steps=3), expected)
    vae.close()
    with pytest.raises(InputError, match="closed"):
        vae.inverse.run(*(np.zeros((1, *shape), np.float32) for shape in found[0].inputs.values()))


def test_it_is_not_opened_after_close(tiny, faces):
    vae = VAE.load(tiny.folder, device="cpu")
    vae.close()
    vae.close()
    with pytest.raises(InputError, match="closed"):
        vae.inverse  # noqa: B018
    with pytest.raises(InputError, match="closed"):
        vae.invert(faces, steps=1)
    assert vae._inverse is None


def test_a_damaged_one_is_named(tmp_path):
    folder = build_model(tmp_path / "m").folder
    (folder / "inverse.onnx").write_bytes(b"\x08\x0a")
    vae = VAE.load(folder, device="cpu")
    with pytest.raises(ModelFileError, match=r"inverse\.onnx.*SHA-256"):
        vae.invert(np.zeros((1, SIZE, SIZE, 3), np.uint8))


# ---- the descent ----------------------------------------------------------------------------------------------------


def test_adam_keeps_the_best_of_its_way():
    """A rate far too large jumps over the minimum; a row that begins in it stays there."""
    found = adam(lambda z: ((z**2).sum(1), 2 * z), np.array([[0.0, 0.0], [0.3, -0.2]]), 7, learning_rate=50.0)
    np.testing.assert_array_equal(found[0], [0, 0])
    assert (found[1] ** 2).sum() <= 0.13 + 1e-12


def test_adam_of_no_steps_is_the_start(rng):
    start = rng.normal(size=(2, 3))
    np.testing.assert_array_equal(adam(lambda z: ((z**2).sum(1), 2 * z), start, 0), start)


def test_inversion_finds_the_code_that_made_the_picture(vae, rng):
    """The tiny encoder guesses blindly; the decoder's pictures tell the code but for their 8-bit rounding."""
    z = rng.normal(0, 0.5, (4, DIM))
    found = vae.invert(vae.decode(z), steps=400)
    assert squares(vae, vae.encode(vae.decode(z))[0], vae.decode(z)).min() > 1
    np.testing.assert_allclose(found, z, atol=0.05)


def test_inversion_is_nearer_than_the_encoder(vae, faces):
    start, found = vae.encode(faces)[0], vae.invert(faces, steps=50)
    assert (found.dtype, found.shape) == (np.float32, (3, DIM))
    assert (squares(vae, found, faces) < squares(vae, start, faces)).all()
    np.testing.assert_array_equal(vae.invert(faces, steps=50), found)
    np.testing.assert_array_equal(vae.invert(faces, steps=0), start)


def test_a_high_temperature_leaves_the_prior(vae, faces):
    """With pixels that count for nothing the most probable code is the prior's mode, here 0."""
    np.testing.assert_allclose(vae.invert(faces, steps=500, temperature=1e6), 0, atol=1e-2)


# ---- masks ----------------------------------------------------------------------------------------------------------


def test_hidden_pixels_have_no_influence(vae, faces, rng):
    changed = faces.copy()
    changed[:, corner()] = rng.integers(0, 256, (3, 16, 3), np.uint8)
    np.testing.assert_array_equal(vae.invert(changed, corner(), 20), vae.invert(faces, corner(), 20))
    hidden = np.broadcast_to(corner(), (3, SIZE, SIZE))
    np.testing.assert_array_equal(vae.inpaint(changed, corner(), 20)[hidden], vae.inpaint(faces, corner(), 20)[hidden])


def test_inpainting_keeps_what_is_known_and_paints_the_rest(vae, tiny, rng):
    z = rng.normal(0, 0.5, (2, DIM))
    faces = tiny.decode(z)
    damaged = faces.copy()
    damaged[:, corner()] = 0
    painted = vae.inpaint(damaged, corner(), 400, temperature=1)
    known = ~np.broadcast_to(corner(), (2, SIZE, SIZE))
    np.testing.assert_array_equal(painted[known], faces[known])
    assert np.abs(painted[~known].astype(int) - faces[~known]).max() <= 8


def test_masks_come_in_every_form(vae, faces, tmp_path):
    mask = corner()
    white = mask.astype(np.uint8) * 255
    Image.fromarray(white).save(tmp_path / "m.png")
    expected = vae.inpaint(faces, mask, 5)
    for form in (white, Image.fromarray(white), tmp_path / "m.png", (tmp_path / "m.png").read_bytes(), [mask] * 3):
        np.testing.assert_array_equal(vae.inpaint(faces, form, 5), expected)
    np.testing.assert_array_equal(vae.inpaint(faces, np.stack([mask] * 3), 5), expected)
    np.testing.assert_array_equal(vae.inpaint(faces, white[..., None].repeat(3, 2), 5), expected)
    alone = vae.inpaint(faces[1], mask, 5)
    assert alone.shape == (1, SIZE, SIZE, 3)


def test_a_painted_layer_is_a_mask_whatever_its_color():
    """Opaque strokes on a transparent layer; a picture without transparency counts by its brightness."""
    layer = np.zeros((SIZE, SIZE, 4), np.uint8)
    for color in (0, 90, 255):
        layer[corner()] = (color, color, color, 255)
        for form in (layer, Image.fromarray(layer)):
            np.testing.assert_array_equal(fit_mask(form, (SIZE, SIZE, 3), SIZE, "mask"), corner())
    opaque = np.full((SIZE, SIZE, 4), 255, np.uint8)
    opaque[~corner(), :3] = 0
    np.testing.assert_array_equal(fit_mask(opaque, (SIZE, SIZE, 3), SIZE, "mask"), corner())


def test_a_mask_of_0_and_1_is_a_mask():
    np.testing.assert_array_equal(fit_mask(corner().astype(np.uint8), (SIZE, SIZE, 3), SIZE, "mask"), corner())


def test_each_picture_has_its_own_mask(vae, faces):
    masks = np.stack([corner(), corner()[::-1], corner().T])
    painted = vae.inpaint(faces, masks, 5)
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(painted[index][~mask], faces[index][~mask])
        assert (painted[index][mask] != faces[index][mask]).any()
    assert vae.inpaint([], corner()).shape == (0, SIZE, SIZE, 3)
    assert vae.invert([]).shape == (0, DIM)


def test_a_mask_is_cut_and_resampled_with_its_picture():
    """32 x 48 -> the middle 32 x 32 -> 8 x 8: a single hidden pixel hides what its color got into."""
    mask = np.zeros((32, 48), bool)
    mask[9, 8 + 18] = True
    hidden = fit_mask(mask, (32, 48, 3), 8, "mask")
    rows, columns = np.nonzero(hidden)
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[9, 8 + 18] = 255
    fitted = np.asarray(Image.fromarray(picture[:, 8:40]).resize((8, 8), Image.Resampling.BILINEAR))
    assert hidden.sum() >= 1
    np.testing.assert_array_equal(hidden, fitted[..., 0] > 0)
    assert {*rows} <= {1, 2, 3}
    assert {*columns} <= {3, 4, 5}


def test_a_color_array_is_one_mask_and_a_stack_is_many(rng):
    color, stack = np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8), bool)
    assert len(each_mask(color, 5)) == 5
    assert [mask.shape for mask in each_mask(stack, 2)] == [(8, 8)] * 2


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (np.ones((SIZE, SIZE), bool), InputError, "hides the whole picture"),
        (np.zeros((SIZE, SIZE), bool), InputError, r"mask\[0\]: hides nothing"),
        (np.full((SIZE, SIZE), 100, np.uint8), InputError, r"mask\[0\]: hides nothing"),
        (np.zeros((SIZE, SIZE, 4), np.uint8), InputError, r"mask\[0\]: hides nothing"),
        (np.zeros((SIZE, SIZE + 1), bool), InputError, r"mask\[0\]: got 9 x 8 pixels, expected 8 x 8"),
        (np.zeros((2, SIZE, SIZE), bool), InputError, "got 2 for 3 pictures"),
        (np.zeros((SIZE, SIZE)), InputError, r"mask\[0\]: got an array of float64"),
        ("nowhere.png", ImageError, r"nowhere\.png: no such file"),
        (7, ImageError, "got int"),
    ],
)
def test_masks_that_are_none(vae, faces, mask, error, words):
    with pytest.raises(error, match=words):
        vae.inpaint(faces, mask)


def test_other_bad_inputs(vae, faces):
    with pytest.raises(InputError, match="steps: got -1"):
        vae.invert(faces, steps=-1)
    with pytest.raises(InputTypeError, match="steps"):
        vae.invert(faces, steps=1.5)
    with pytest.raises(InputError, match="temperature: got 0"):
        vae.invert(faces, temperature=0)
    with pytest.raises(InputError, match="side: got 3, expected a divisor of the model's 8"):
        vae.upscale(faces, 3)
    with pytest.raises(ImageError, match=r"images\[1\]"):
        vae.inpaint([faces[0], "nowhere.png"], corner())


# ---- super-resolution -----------------------------------------------------------------------------------------------


def test_a_small_picture_tells_the_large_one(vae, tiny, rng):
    z = rng.normal(0, 0.5, (2, DIM))
    faces = tiny.decode(z)
    small = np.rint(block_means(faces.transpose(0, 3, 1, 2).astype(np.float32), 2)).astype(np.uint8)
    large = vae.upscale(small.transpose(0, 2, 3, 1), SIZE // 2, 400)
    assert (large.shape, large.dtype) == (faces.shape, np.uint8)
    assert np.abs(large.astype(int) - faces).max() <= 12


def test_of_the_full_size_it_is_inversion(vae, faces):
    """A factor of 1: blocks of one pixel, so the other way to the gradient must lead to the same picture."""
    np.testing.assert_allclose(
        vae.upscale(faces, SIZE, 50).astype(int), vae.decode(vae.invert(faces, steps=50)), atol=1
    )


# ---- the prior's gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_score_is_the_gradient_of_the_log_density(count, rng):
    """Central differences; `count` 0 is N(0, I), whose score is -z."""
    scales = np.tril(rng.normal(0, 0.3, (count, 4, 4)))
    scales[:, range(4), range(4)] = rng.uniform(0.5, 1.5, (count, 4))
    weights = np.full(count, 1 / max(count, 1))
    prior = Prior(weights, rng.normal(0, 1, (count, 4)), scales) if count else Prior.standard(4)
    z = rng.normal(size=(6, 4))
    density, score = prior.log_prob_and_score(z)
    np.testing.assert_array_equal(density, prior.log_prob(z))
    for axis, step in enumerate(1e-5 * np.eye(4)):
        slope = (prior.log_prob(z + step) - prior.log_prob(z - step)) / 2e-5
        np.testing.assert_allclose(score[:, axis], slope, rtol=1e-6, atol=1e-7)
    if not count:
        np.testing.assert_allclose(score, -z)


def test_a_mask_may_be_a_tensor():
    torch = pytest.importorskip("torch")
    images = np.zeros((2, 8, 8, 3), np.uint8)
    hidden = np.zeros((8, 8), np.bool_)
    hidden[2:5, 1:3] = True
    stack = np.stack([hidden, hidden.T])
    for mask in (hidden, stack):
        expected = prepare_masked(images, mask, 8)[1]
        np.testing.assert_array_equal(prepare_masked(images, torch.from_numpy(mask), 8)[1], expected)
