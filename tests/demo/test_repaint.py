"""The Inpaint tab: painted on in a browser, called through its API, and refused what is no painting."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from demo.components.data_uri import from_uri, holes_from_uri, mask_from_uri, to_uri
from demo.service import MAX_STEPS
from tests.demo.test_app import BUNDLED, TINY, call, leaks, tall
from tests.demo.test_browser import choose_model, open_tab, wait_until
from vae_runtime import ImageError, save_png
from vae_runtime.images import psnr


@pytest.fixture(autouse=True)
def _able(vaes):
    if not vaes[0].has_inverse:
        pytest.skip("the bundled model has no inverse.onnx")


@pytest.fixture
def painting(vaes):
    """A face with its middle hidden: (face, mask, what the page would send)."""
    face = vaes[0].sample(1, rng=31)[0]
    hidden = np.zeros(face.shape[:2], bool)
    third = len(face) // 3
    hidden[third:-third, third:-third] = True
    mask = np.repeat(hidden[..., None] * np.uint8(255), 3, axis=2)
    return face, hidden, {"src": to_uri(face), "mask": to_uri(mask)}


def test_inpaint_gives_the_pixels_of_the_runtime(client, vaes, painting):
    face, hidden, sent = painting
    (answer,) = client.predict(BUNDLED, sent, 20, api_name="/inpaint")
    found = from_uri(answer["src"])
    assert np.array_equal(found, vaes[0].inpaint(face, hidden, steps=20)[0])
    assert np.array_equal(found[~hidden], face[~hidden])


def test_invert_comes_closer_than_the_encoder(client, vaes, painting):
    face, _, sent = painting
    pair, text = client.predict(BUNDLED, {"src": sent["src"]}, 60, api_name="/invert")
    original, closer = from_uri(pair["before"]), from_uri(pair["after"])
    assert np.array_equal(original, face)
    assert np.array_equal(closer, vaes[0].decode(vaes[0].invert(face, steps=60))[0])
    assert psnr(face, closer) > psnr(face, vaes[0].reconstruct(face)[0])
    assert f"{psnr(face, closer):.1f} dB" in text


BLANK = to_uri(np.zeros((32, 32, 3), np.uint8))
WHITE = to_uri(np.full((32, 32, 3), 255, np.uint8))
SOME = to_uri(np.repeat(np.arange(32)[:, None, None] < 9, 32, axis=1).repeat(3, axis=2) * np.uint8(255))
BAD = [
    (None, 20, "picture first"),
    ({"src": "", "mask": ""}, 20, "picture first"),
    ({"src": BLANK, "mask": ""}, 20, "hides nothing"),
    ({"src": BLANK, "mask": BLANK}, 20, "hides nothing"),
    ({"src": BLANK, "mask": WHITE}, 20, "hides the whole"),
    ({"src": BLANK, "mask": to_uri(np.eye(5, 7, dtype=np.uint8)[..., None].repeat(3, axis=2) * 255)}, 20, "ask"),
    ({"src": BLANK, "mask": "data:text/html;base64,QQ=="}, 20, "PNG data URI"),
    ({"src": "file:///etc/passwd", "mask": SOME}, 20, "PNG data URI"),
    ({"src": "/etc/passwd", "mask": SOME}, 20, "PNG data URI"),
    ({"src": ["/etc/passwd"], "mask": SOME}, 20, "PNG data URI"),
    ({"src": {"path": "/etc/passwd"}, "mask": SOME}, 20, "PNG data URI"),
    ({"src": BLANK, "mask": 7}, 20, "PNG data URI"),
    ({"src": tall(7000), "mask": SOME}, 20, "pixels"),
    ({"src": BLANK, "mask": tall(30_000)}, 20, "read"),
    ("/etc/passwd", 20, "picture first"),
    ([], 20, "picture first"),
    ({"src": BLANK, "mask": SOME}, MAX_STEPS + 1, ""),
    ({"src": BLANK, "mask": SOME}, 1e9, ""),
    ({"src": BLANK, "mask": SOME}, -1, ""),
    ({"src": BLANK, "mask": SOME}, "many", ""),
]


@pytest.mark.parametrize(("sent", "steps", "named"), BAD, ids=lambda value: str(value)[:30])
def test_what_is_no_painting_is_refused(address, client, sent, steps, named):
    said = call(address, "inpaint", [BUNDLED, sent, steps])
    assert "event: error" in said
    assert named in said
    assert not leaks(said)
    assert len(said) < 1000


def test_the_alpha_channel_is_the_mask_where_there_is_one():
    alpha = np.zeros((8, 8), np.uint8)
    alpha[2:4] = 255
    layer = np.dstack([np.full((8, 8, 3), 255, np.uint8), alpha])  # a brush layer: white everywhere, opaque in part
    assert np.array_equal(mask_from_uri(uri_of(layer)), alpha > 0)
    light = np.repeat(alpha[..., None], 3, axis=2)
    assert np.array_equal(mask_from_uri(uri_of(light)), alpha > 0)


def uri_of(array: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_model_without_the_graph_says_so(address, client, page, painting):
    assert "inverse.onnx" in call(address, "inpaint", [TINY, painting[2], 20])
    open_tab(page, address, "inpaint")
    page.locator("#inpaint-paint canvas").first.wait_for()
    choose_model(page, "tiny")
    page.get_by_text("comes without").wait_for()
    assert not page.locator("#inpaint-run").is_visible()


def stroke(page, *points: tuple[float, float]) -> None:
    """Draw through points that are given in shares of the face."""
    box = page.locator("#inpaint-paint .strokes").bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def mask_shown(page) -> np.ndarray:
    return mask_from_uri(page.locator("#inpaint-paint .mask").get_attribute("src"))


def test_a_stroke_hides_and_what_it_hides_is_painted_anew(page, address, vaes, tmp_path):
    face = vaes[0].sample(1, rng=32)[0]
    size = vaes[0].image_size
    open_tab(page, address, "inpaint")
    page.get_by_role("button", name="Remove: Another face").click()
    page.get_by_text("Give a face, then paint").wait_for()
    page.locator("#inpaint-in input[type=file]").set_input_files(save_png(face, tmp_path / "me.png"))
    wait_until(page, "#inpaint-paint", face[None])
    page.locator("#inpaint-run").click()
    page.get_by_text("hides nothing").first.wait_for()
    stroke(page, (0.3, 0.5), (0.5, 0.5), (0.7, 0.5))
    page.locator("#inpaint-paint .mask").wait_for()
    before = page.locator("#inpaint-paint .mask").get_attribute("src")
    stroke(page, (0.5, 0.2), (0.5, 0.3))
    page.wait_for_function("before => document.querySelector('#inpaint-paint .mask').src !== before", arg=before)
    mask = mask_shown(page)
    assert mask[size // 2, size // 3 : -size // 3].all()
    assert mask[size // 4, size // 2]
    assert not mask[-size // 4 :].any()
    assert not mask[:, : size // 8].any()
    page.locator("#inpaint-run").click()
    wait_until(page, "#inpaint-out", vaes[0].inpaint(face, mask, steps=150))
    page.locator("#inpaint-paint .clear").click()
    page.locator("#inpaint-paint .mask").wait_for(state="hidden")
    page.locator("#inpaint-paint .strokes").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.locator("#inpaint-paint .mask").wait_for()
    assert mask_shown(page)[size * 9 // 20, size // 2]


def test_what_is_transparent_in_a_picture_is_painted_over_from_the_start(page, address, vaes, tmp_path):
    face, size = vaes[0].sample(1, rng=33)[0], vaes[0].image_size
    alpha = np.full((size, size), 255, np.uint8)
    alpha[size // 4 : size // 2, size // 4 : size // 2] = 0
    Image.fromarray(np.dstack([face, alpha])).save(tmp_path / "torn.png")
    open_tab(page, address, "inpaint")
    page.locator("#inpaint-in input[type=file]").set_input_files(tmp_path / "torn.png")
    page.locator("#inpaint-paint .mask[src]").wait_for()
    assert np.array_equal(mask_shown(page), alpha == 0)
    page.locator("#inpaint-run").click()
    torn = np.where(alpha[..., None] == 0, np.uint8(255), face)
    wait_until(page, "#inpaint-out", vaes[0].inpaint(torn, alpha == 0, steps=150))
    page.locator("#inpaint-in input[type=file]").set_input_files(save_png(face, tmp_path / "whole.png"))
    page.locator("#inpaint-paint .mask").wait_for(state="hidden")


@pytest.mark.parametrize("text", [None, 7, "", "data:text/html;base64,QQ=="])
def test_what_is_no_picture_has_no_holes(text):
    assert not holes_from_uri(text, 4).any()


def png_with_bad_text(picture: np.ndarray) -> bytes:
    """A PNG that `load_image` reads and Pillow alone refuses: the checksum of its text is wrong."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    data, body = file.getvalue(), b"tEXtkey\0value"
    text = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body) ^ 1)
    return data[:33] + text + data[33:]


def test_a_damaged_text_of_a_picture_costs_no_holes():
    alpha = np.array([[0, 255], [255, 255]], np.uint8)
    data = png_with_bad_text(np.dstack([np.zeros((2, 2, 3), np.uint8), alpha]))
    found = holes_from_uri("data:image/png;base64," + base64.b64encode(data).decode(), 2)
    assert np.array_equal(found, alpha == 0)


def test_a_picture_that_ends_early_is_refused_as_mask_and_for_its_holes(rng):
    whole = base64.b64decode(uri_of(rng.integers(0, 256, (32, 32, 4), np.uint8)).partition(",")[2])
    text = "data:image/png;base64," + base64.b64encode(whole[:-1000]).decode()
    with pytest.raises(ImageError, match="not a picture that can be read"):
        mask_from_uri(text)
    with pytest.raises(ImageError, match="transparency"):
        holes_from_uri(text, 4)


def test_holes_are_cut_as_the_picture_is():
    alpha = np.full((4, 8), 255, np.uint8)
    alpha[:, :3] = 0  # two columns of which the central square does not have
    found = holes_from_uri(uri_of(np.dstack([np.zeros((4, 8, 3), np.uint8), alpha])), 4)
    assert np.array_equal(found, np.arange(4)[None].repeat(4, axis=0) == 0)
