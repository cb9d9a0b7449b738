"""The page without a server: assembled, served as plain files, and its pixels compared with Python's."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.space import main
from demo.static_site import ORT_FILES
from tests.demo.conftest import serving_files
from vae_runtime import InputError, ModelFileError, save_png
from vae_runtime.hub import bundled_model
from vae_runtime.images import psnr
from vae_runtime.prior import text_code


@pytest.fixture(scope="module")
def site(tmp_path_factory, folder) -> Path:
    """The static Space with both models; its engine from $ORT_WEB (a folder) or from npm."""
    out = tmp_path_factory.mktemp("static") / "site"
    engine = os.environ.get("ORT_WEB")
    if engine is None and shutil.which("npm") is None:
        pytest.skip("the static page needs onnxruntime-web: install npm, or name a folder with its files in ORT_WEB")
    models = [str(bundled_model()), str(folder)]
    try:
        assert main([*models, "--static", "--out", str(out), *(["--engine", engine] if engine else [])]) == 0
    except InputError as error:
        if "cannot be fetched" not in str(error):
            raise
        pytest.skip(f"the static page needs onnxruntime-web: {error}")
    return out


@pytest.fixture(scope="module")
def static(site):
    """The address of the files, served with the headers of a static Space."""

    with serving_files(site) as address:
        yield address


def ready(page, static: str, name: str = "") -> None:
    page.goto(static)
    page.locator("html[data-ready]").wait_for()
    if name and name != bundled_model().name:
        page.locator("#model").select_option(name)
        page.locator(f"html[data-ready='{name}']").wait_for()


def open_panel(page, name: str) -> None:
    page.locator(f"#tab-{name}").click()
    page.locator(f"#{name}, #{name}-panel").and_(page.locator("[role=tabpanel]")).wait_for()


def drawn(page, canvas: str) -> str:
    return str(page.locator(canvas).evaluate("canvas => canvas.toDataURL()"))


def until_changed(page, canvas: str, before: str) -> None:
    page.wait_for_function(
        "([canvas, before]) => document.querySelector(canvas).toDataURL() !== before", arg=[canvas, before]
    )


def test_the_page_has_the_golden_vectors_of_the_export(site, folder):
    name = bundled_model().name
    for model, place in ((bundled_model(), site / "models" / name), (folder, site / "models" / "tiny")):
        assert (place / "golden.json").read_bytes() == (model / "golden.json").read_bytes()


def test_a_model_without_golden_vectors_becomes_no_page(tmp_path, tiny):
    with pytest.raises(ModelFileError, match=r"no golden\.json in it"):
        main([str(tiny.folder), "--static", "--out", str(tmp_path / "site"), "--engine", str(tmp_path)])


@pytest.mark.parametrize("name", [bundled_model().name, "tiny"])
def test_the_browser_draws_what_python_draws(page, static, name):
    ready(page, static, name)
    found = page.locator("html").evaluate("root => ({...root.dataset})")
    assert found["ready"] == name
    assert int(found["pixels"]) <= 1
    assert float(found["codes"]) < 1e-2  # the variant fp16, where the model has one
    assert f"by {found['pixels']} of 255" in page.locator("#about").inner_text()


@pytest.mark.parametrize("adapter", ["null", "({features: new Set()})", "Promise.reject(Error())"])
def test_webassembly_draws_where_webgpu_fails(page, static, adapter):
    """No adapter, one that gives no device, and an error."""
    gpu = f"{{requestAdapter: async () => {adapter}}}"
    page.add_init_script(f"Object.defineProperty(navigator, 'gpu', {{value: {gpu}}})")
    ready(page, static)
    assert page.locator("html").get_attribute("data-provider") == "wasm"
    assert page.locator("#status").inner_text() == ""
    before = drawn(page, "#face")
    page.locator("#face").press("ArrowLeft")
    until_changed(page, "#face", before)


def test_codes_from_here_become_the_same_pixels_there(page, static, vaes):
    """The page's own module, on codes that are not in the golden file."""
    ready(page, static)
    size, z = vaes[0].image_size, vaes[0].prior.sample(3, rng=5)
    drawn = page.evaluate(
        """async ([name, codes]) => {
            const {VAE} = await import('./vae.js');
            const vae = await VAE.load(name);
            return [...await vae.decode(Float32Array.from(codes))];
        }""",
        [bundled_model().name, z.ravel().tolist()],
    )
    there = np.array(drawn, np.uint8).reshape(3, size, size, 4)[..., :3]
    assert np.abs(there.astype(int) - vaes[0].decode(z)).max() <= 1


def test_pictures_are_cut_and_resampled_as_in_python(page, static, vaes, rng):
    ready(page, static)
    size, picture = vaes[0].image_size, rng.integers(0, 256, (90, 130, 3), np.uint8)
    source = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    seen = page.evaluate(
        "async ([pixels, w, h, size]) => [...(await import('./vae.js')).fitSquare(pixels, w, h, size)]",
        [source.ravel().tolist(), 130, 90, size],
    )
    there = np.array(seen, np.uint8).reshape(size, size, 4)[..., :3]
    assert np.abs(there.astype(int) - vaes[0].prepare(picture)[0]).max() <= 1


def test_the_prior_is_sampled_as_it_is(page, static, vaes):
    """A mixture of two Gaussians: mean and spread of the codes drawn by the page are those of the prior."""
    ready(page, static, "tiny")
    codes = page.evaluate(
        """async () => {
            const {VAE, seeded} = await import('./vae.js');
            const vae = await (await VAE.load('tiny')).complete();
            return [...vae.sample(4000, seeded(1))];
        }"""
    )
    there, here = np.array(codes).reshape(4000, 4), vaes[1].prior.sample(4000, rng=1)
    np.testing.assert_allclose(there.mean(axis=0), here.mean(axis=0), atol=0.08)
    np.testing.assert_allclose(there.std(axis=0), here.std(axis=0), atol=0.08)


@pytest.mark.parametrize("number", [0, 1])
def test_the_same_noise_becomes_the_same_codes_as_in_python(page, static, vaes, number):
    """The bundled model's prior, and a mixture; the page is given the uniform numbers that it draws from."""
    ready(page, static)
    vae, count, dim = vaes[number], 3, vaes[number].latent_dim
    uniform = np.random.default_rng(2).random((count, 1 + 2 * dim))
    codes = page.evaluate(
        """async ([name, uniform]) => {
            const {VAE} = await import('./vae.js');
            const vae = await (await VAE.load(name)).complete(), left = uniform.values();
            return [...vae.sample(uniform.length / (1 + 2 * vae.dim), () => left.next().value, 0.7)];
        }""",
        [vae.config.name, uniform.ravel().tolist()],
    )
    prior = vae.prior
    chosen = np.searchsorted(np.cumsum(prior.weights)[:-1], uniform[:, 0], side="right")
    eps = np.sqrt(-2 * np.log(1 - uniform[:, 1::2])) * np.cos(2 * np.pi * uniform[:, 2::2])
    eps *= 1 if prior.spreads is None else prior.spreads[chosen]
    if prior.scales is not None:
        eps = np.stack([prior.scales[k % len(prior.scales)] @ row for k, row in zip(chosen, eps, strict=True)])
    x = prior.means[chosen] + 0.7 * eps
    expected = x if prior.flow is None else prior.flow.forward(x)
    np.testing.assert_allclose(np.reshape(codes, (count, dim)), expected, atol=1e-4)


def test_a_name_has_the_code_of_python_to_the_bit(page, static, vaes):
    ready(page, static)
    for vae in vaes:
        for text in (
            "Ada Lovelace",
            "  aDA  LOVELACE",
            "M\u00fcnchen",
            "Mu\u0308nchen",
            "\u5409\u7530",
            "${1}<b>",
            "\U0001f338",
        ):
            codes = page.evaluate(
                """async ([name, text]) => {
                    const {VAE} = await import('./vae.js');
                    const vae = await (await VAE.load(name)).complete();
                    return [...new Uint8Array((await vae.codeOf(text)).buffer)];
                }""",
                [vae.config.name, text],
            )
            assert bytes(codes) == text_code(text, vae.prior).astype("<f4").tobytes()


def test_what_is_shown_before_the_model_is_what_it_shows_first(page, static, site, vaes):
    ready(page, static)
    size = vaes[0].image_size
    with Image.open(site / "poster.webp") as poster:
        expected = np.asarray(poster.convert("RGB").resize((size, size), Image.Resampling.BOX)).astype(int)
    there = page.locator("#face").screenshot()
    with Image.open(io.BytesIO(there)) as shown:
        found = np.asarray(shown.convert("RGB").resize((size, size), Image.Resampling.BOX)).astype(int)
    inner = slice(size // 4, -size // 4)  # the corners are covered
    assert np.abs(found - expected)[inner, inner].mean() < 8


def test_dragging_blends_and_every_wish_is_drawn(page, static):
    ready(page, static)
    before = drawn(page, "#face")
    box = page.locator("#face").bounding_box()
    frames = int(page.locator("html").get_attribute("data-frames"))
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    for step in range(30):
        page.mouse.move(box["x"] + box["width"] * (0.3 + step / 60), box["y"] + box["height"] * 0.5)
    page.mouse.up()
    until_changed(page, "#face", before)
    page.wait_for_function("frames => Number(document.documentElement.dataset.frames) > frames", arg=frames + 5)


def test_sliders_bend_the_face_and_go_back(page, static):
    ready(page, static)
    before = drawn(page, "#face")
    page.locator("#sliders input").first.fill("3")
    until_changed(page, "#face", before)
    page.locator("#zero").click()
    page.wait_for_function("before => document.querySelector('#face').toDataURL() === before", arg=before)


def test_an_own_picture_comes_back_and_leaves_nothing_behind(page, static, vaes, tmp_path):
    face = vaes[0].sample(1, rng=8)[0]
    ready(page, static)
    open_panel(page, "own")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.startswith("http") else None)
    page.locator("#own").set_input_files(save_png(face, tmp_path / "me.png"))
    page.locator("#pair").wait_for()
    said = float(page.locator("#psnr[title$=dB]").get_attribute("title").split()[1])
    assert said == pytest.approx(psnr(face, vaes[0].reconstruct(face)[0]), abs=0.1)
    assert asked == []


def test_a_file_that_is_no_picture_gets_a_sentence(page, static, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    ready(page, static)
    open_panel(page, "own")
    page.locator("#own").set_input_files(tmp_path / "no.png")
    page.get_by_text("cannot read that file").wait_for()
    assert not page.locator("#pair").is_visible()


def test_picked_faces_have_children_here_too(page, static):
    ready(page, static)
    open_panel(page, "evolve")
    page.locator("#breed").click()
    page.get_by_text("Pick the faces").last.wait_for()
    before = drawn(page, "#generation canvas >> nth=2")
    page.locator("#generation button").nth(0).click()
    page.locator("#breed").click()
    page.wait_for_function(
        "before => document.querySelectorAll('#generation canvas')[2]?.toDataURL() !== before", arg=before
    )
    assert page.locator("#generation button").count() == 16
    before = drawn(page, "#face")
    page.locator("#generation button").nth(5).click()
    page.locator("#take").click()
    until_changed(page, "#face", before)


def test_what_is_painted_over_is_drawn_anew_and_the_rest_stays(page, static):
    ready(page, static)
    open_panel(page, "repaint")
    page.locator("#anew").click()
    page.get_by_text("Paint over a part of the face first").wait_for()
    before = drawn(page, "#under")
    box = page.locator("#strokes").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.6)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6)
    page.mouse.up()
    page.locator("#anew").click()
    until_changed(page, "#under", before)


def test_a_loop_is_recorded(page, static):
    ready(page, static)
    with page.expect_download() as download:
        page.locator("#loop").click()
    assert download.value.suggested_filename.startswith("anime-vae-loop.")
    assert download.value.path().stat().st_size > 10_000


def test_a_link_opens_what_was_seen(page, browser, static):
    ready(page, static)
    for act in (page.locator("#samples button").nth(3).click, lambda: page.locator("#sliders input").first.fill("2")):
        before = drawn(page, "#face")
        act()
        until_changed(page, "#face", before)
    page.locator("#share").click()
    page.get_by_text("Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    other = browser.new_page()
    other.goto(link)
    other.locator("html[data-ready]").wait_for()
    pixels = "canvas => [...canvas.getContext('2d').getImageData(60, 60, 200, 200).data]"
    here, there = (np.array(each.locator("#face").evaluate(pixels), int) for each in (page, other))
    assert np.abs(here - there).mean() < 3
    assert other.locator("#sliders input").first.input_value() == "2"
    other.close()


@pytest.mark.parametrize("link", ["#model=../x", "#model=tiny&faces=AAAA.AAAA", "#faces=${alert(1)}&at=NaN,9&bend=[["])
def test_a_hostile_link_shows_the_page_as_it_is(page, static, link):
    page.goto(static + link)
    page.locator("html[data-ready]").wait_for()
    assert page.locator("#status").inner_text() == ""


# Until the service worker has kept all that this page has asked for.
KEPT = """async () => {
  for (const { name } of performance.getEntriesByType('resource'))
    while (!(await caches.match(name))) await new Promise((done) => setTimeout(done, 20));
}"""


def test_the_page_opens_without_a_network(page, static):
    ready(page, static)
    page.wait_for_function("() => navigator.serviceWorker.controller !== null")
    page.reload()
    page.locator("html[data-ready]").wait_for()
    page.evaluate(KEPT)
    page.context.set_offline(True)
    page.reload()
    page.locator("html[data-ready]").wait_for()
    page.context.set_offline(False)


def test_the_first_face_needs_few_bytes(site):
    """10 MB for the avatars, and the sum that the progress bar goes by is right."""
    for entry in json.loads((site / "models" / "index.json").read_text()):
        files = [site / "vendor" / "ort-wasm-simd-threaded.wasm.gz"]
        files += [site / "models" / entry["name"] / name for name in ("model.json", "decoder.onnx.gz")]
        assert entry["bytes"] == sum(path.stat().st_size for path in files)
        assert entry["bytes"] < 10e6


def test_nothing_comes_before_the_first_face_but_what_it_needs(page, static):
    """On a slow line its bytes are its seconds: no prior, no encoder, no WebGPU, no copies for the service worker."""
    ready(page, static)
    first = float(page.locator("html").get_attribute("data-first"))
    asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => [entry.name, entry.startTime])")
    before = {Path(name).name for name, start in asked if start < first}
    assert {"decoder.onnx.gz", "ort-wasm-simd-threaded.wasm.gz"} <= before
    assert not before & {"prior.json.gz", "encoder.onnx.gz", "golden.json", "ort.webgpu.min.mjs", "sw.js"}


def test_the_page_shows_itself_small(site):
    assert (site / "poster.webp").stat().st_size < 30_000
    manifest = json.loads((site / "manifest.webmanifest").read_text())
    assert all((site / icon["src"]).exists() for icon in manifest["icons"])
    assert "development" not in (site / "sw.js").read_text()


def test_a_phone_shows_all_of_it(page, static):
    page.set_viewport_size({"width": 390, "height": 844})
    ready(page, static)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_folder_is_a_static_space(site):
    head = (site / "README.md").read_text().split("---")[1]
    assert "sdk: static" in head
    assert "app_file: index.html" in head
    assert {path.name.removesuffix(".gz") for path in (site / "vendor").iterdir()} == set(ORT_FILES)
    with Image.open(site / "thumbnail.png") as picture:
        assert min(picture.size) > 200
