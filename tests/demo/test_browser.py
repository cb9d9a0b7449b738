"""Each tab used as a person would use it, in a real browser; its pictures compared with those of vae_runtime."""

from __future__ import annotations

import numpy as np
import pytest

from demo.app import FIRST_FACES, FIRST_SEED, PHOTOGRAPH, TABS
from demo.components import from_uri, to_uri
from demo.evolution import Lineage
from demo.service import NAMED, STRONG, Studio
from vae_runtime.figures import save_png
from vae_runtime.images import fit_square, load_image


def shown(page, place: str) -> list[np.ndarray]:
    """The pictures that a grid shows, decoded from what the browser holds.

    While Gradio takes over a new list, the end of the old one is still there, which another model may have drawn in
    another size.
    """
    sources = page.locator(f"{place} img").evaluate_all("images => images.map((image) => image.src)")
    return [from_uri(source) for source in sources]


def same(found: list[np.ndarray], faces: np.ndarray) -> bool:
    return len(found) == len(faces) and all(map(np.array_equal, found, faces))


def wait_until(page, place: str, faces: np.ndarray) -> None:
    """Wait until a grid shows exactly these faces."""
    for _ in range(300):
        found = shown(page, place)
        if same(found, faces):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"{place} shows {[face.shape for face in found]}, other faces than {faces.shape}")


def open_tab(page, address: str, tab: str, **settings: object) -> None:
    page.goto(address + "?" + "&".join(f"{key}={value}" for key, value in {"tab": tab, **settings}.items()))
    page.get_by_role("tab", name=tab.capitalize(), exact=True, selected=True).wait_for()


def test_the_first_faces_are_there_at_once_and_new_ones_come(page, address, vaes):
    page.goto(address)
    page.locator("#sample-faces img").first.wait_for()
    assert same(shown(page, "#sample-faces"), vaes[0].sample(FIRST_FACES, rng=FIRST_SEED))
    page.locator("#new-faces").click()
    page.wait_for_url("**seed=**")
    seed = int(page.locator("#sample-seed input").input_value())
    assert seed != FIRST_SEED
    wait_until(page, "#sample-faces", vaes[0].sample(FIRST_FACES, rng=seed))


def test_a_link_restores_what_was_seen(page, address, vaes):
    open_tab(page, address, "sample", model="tiny", faces=5, seed=42, temperature=0.5, prior="unit")
    wait_until(page, "#sample-faces", vaes[1].sample(5, rng=42, temperature=0.5, prior="unit"))
    assert page.locator("#sample-seed input").input_value() == "42"
    assert page.locator("#model input").input_value() == "tiny"


@pytest.mark.parametrize("query", ["faces=1e9&seed=-4", "seed=nan&temperature=inf", "model=../x&prior=%3Cscript%3E"])
def test_a_hostile_link_shows_the_page_as_it_is(page, address, vaes, query):
    page.goto(f"{address}?tab=sample&{query}")
    wait_until(page, "#sample-faces", vaes[0].sample(FIRST_FACES, rng=FIRST_SEED))


def test_picked_faces_go_to_another_tab(page, address, vaes):
    faces = vaes[0].sample(FIRST_FACES, rng=FIRST_SEED)
    page.goto(address)
    for place in (2, 5):
        page.locator("#sample-faces button").nth(place).click()
    assert page.locator("#sample-faces [aria-pressed=true]").count() == 2
    page.locator("#send-interpolate").click()
    page.get_by_role("tab", name="Interpolate", selected=True).wait_for()
    wait_until(page, "#interpolate-strip", vaes[0].interpolate(faces[2], faces[5], 8))
    assert "square" in page.locator("#interpolate-square .empty").inner_text()
    page.get_by_role("tab", name="Sample").click()
    for place in (7, 9):
        page.locator("#sample-faces button").nth(place).click()
    page.locator("#send-interpolate").click()
    four = faces[[2, 5, 7, 9]]
    wait_until(page, "#interpolate-square", Studio(vaes[0]).square(four))
    wait_until(page, "#interpolate-strip", Studio(vaes[0]).strip(four, 8, "slerp"))
    page.locator("#interpolate-2 button[aria-label*=emove]").first.click()
    wait_until(page, "#interpolate-strip", Studio(vaes[0]).strip(faces[[2, 7, 9]], 8, "slerp"))


def test_a_slower_answer_to_slots_half_filled_does_not_stay(page, address, vaes):
    faces = vaes[0].sample(FIRST_FACES, rng=FIRST_SEED)
    for _ in range(4):
        page.goto(address)
        for place in (2, 5):
            page.locator("#sample-faces button").nth(place).click()
        page.locator("#send-interpolate").click()
        wait_until(page, "#interpolate-strip", vaes[0].interpolate(faces[2], faces[5], 8))
        page.wait_for_timeout(500)
        assert same(shown(page, "#interpolate-strip"), vaes[0].interpolate(faces[2], faces[5], 8))


def test_without_a_pick_the_page_says_what_to_do(page, address):
    page.goto(address)
    page.locator("#sample-faces img").first.wait_for()
    page.locator("#send-edit").click()
    page.get_by_text("Pick a face first").wait_for()


def test_an_uploaded_picture_is_reconstructed(page, address, vaes, tmp_path):
    face = vaes[0].sample(1, rng=77)[0]
    open_tab(page, address, "reconstruct")
    page.locator("#reconstruct-in button[aria-label*=emove]").first.click()
    page.get_by_text("Give a picture").wait_for()
    page.locator("#reconstruct-in input[type=file]").first.set_input_files(save_png(face, tmp_path / "me.png"))
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(face)[0], face]))
    assert "dB" in page.locator("#reconstruct-figures").inner_text()
    page.locator("#reconstruct-out input").fill("80")
    assert page.locator(".compare").evaluate("box => box.style.getPropertyValue('--cut')") == "80%"


def test_a_file_that_is_no_picture_gets_a_sentence(page, address, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    open_tab(page, address, "reconstruct")
    page.locator("#reconstruct-in button[aria-label*=emove]").first.click()
    page.locator("#reconstruct-in input[type=file]").first.set_input_files(tmp_path / "no.png")
    page.get_by_text("Not a picture that can be read").wait_for()


def uploaded(page, place: str) -> bytes:
    """The file behind the picture that an input shows, as the server keeps it for this visitor."""
    source = page.locator(f"{place} img").first.get_attribute("src")
    return bytes(page.request.get(source).body())


def test_a_picture_of_the_camera_is_reconstructed(page, address, vaes):
    open_tab(page, address, "reconstruct")
    page.locator("#reconstruct-in button[aria-label*=emove]").first.click()
    page.get_by_text("Give a picture").wait_for()
    page.locator("#reconstruct-in").get_by_label("Capture from camera").click()
    page.locator("#reconstruct-in").get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#reconstruct-in video')?.videoWidth > 0")
    page.locator("#reconstruct-in button[aria-label='capture photo']").click()
    page.locator("#reconstruct-out img").first.wait_for()
    taken = load_image(uploaded(page, "#reconstruct-in"))
    assert taken.std() > 5  # the camera's picture, and no black frame
    seen = vaes[0].prepare(taken)[0]
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(seen)[0], seen]))


def test_a_picture_of_the_clipboard_is_reconstructed(page, address, vaes):
    face = vaes[0].sample(1, rng=78)[0]
    open_tab(page, address, "reconstruct")
    page.locator("#reconstruct-in button[aria-label*=emove]").first.click()
    page.get_by_text("Give a picture").wait_for()
    page.evaluate(
        """async (uri) => {
            const blob = await (await fetch(uri)).blob();
            await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        }""",
        to_uri(face),
    )
    page.locator("#reconstruct-in").get_by_label("Paste from clipboard").click()
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(face)[0], face]))


def test_the_way_and_the_loop(page, address, vaes):
    pytest.importorskip("cv2")
    studio, faces = Studio(vaes[0]), vaes[0].sample(4, rng=FIRST_SEED)
    open_tab(page, address, "interpolate")
    wait_until(page, "#interpolate-square", studio.square(faces))
    page.get_by_role("radio", name="lerp, straight").click()
    wait_until(page, "#interpolate-strip", studio.strip(faces, 8, "lerp"))
    page.locator("#make-loop").click()
    page.locator("#loop img").wait_for()
    with page.expect_download() as download:
        page.locator("#loop a").click()
    assert download.value.path().read_bytes().startswith(b"\x1aE\xdf\xa3")


def test_sliders_change_the_face_live(page, address, vaes):
    studio, face = Studio(vaes[0]), vaes[0].sample(5, rng=FIRST_SEED)[4]
    open_tab(page, address, "edit")
    wait_until(page, "#edit-out", studio.edit(face, [])[None])
    page.locator("#edit-1 input[type=range]").fill("2")
    wait_until(page, "#edit-out", studio.edit(face, [2.0])[None])
    page.locator("#edit-3 input[type=range]").fill("-1.5")
    wait_until(page, "#edit-out", studio.edit(face, [2.0, 0, -1.5])[None])
    page.locator("#edit-reset").click()
    wait_until(page, "#edit-out", studio.edit(face, [])[None])


def test_a_photograph_is_made_small_once(page, address, vaes, tmp_path, rng):
    studio, photograph = Studio(vaes[0]), rng.integers(0, 256, (900, 1200, 3), np.uint8)
    open_tab(page, address, "edit")
    page.locator("#edit-in button[aria-label*=emove]").first.click()
    page.locator("#edit-in input[type=file]").first.set_input_files(save_png(photograph, tmp_path / "photograph.png"))
    wait_until(page, "#edit-out", studio.edit(fit_square(photograph, PHOTOGRAPH), [])[None])
    page.wait_for_function(f"document.querySelector('#edit-in img').naturalWidth === {PHOTOGRAPH}")


def test_another_model_brings_its_sliders(page, address, vaes):
    open_tab(page, address, "edit")
    page.locator("#model input").click()
    page.get_by_role("option", name="tiny").click()
    page.get_by_text("Smile", exact=True).wait_for()
    assert "Smile" in page.locator(f"#edit-{STRONG + 1}").inner_text()
    assert page.locator(f"#edit-{STRONG}").count() == page.locator(f"#edit-{STRONG + NAMED}").count() == 0
    face = vaes[1].prepare(vaes[0].sample(5, rng=FIRST_SEED)[4])
    wait_until(page, "#edit-out", vaes[1].reconstruct(face))
    page.locator("#edit-9 input[type=range]").fill("3")
    wait_until(page, "#edit-out", vaes[1].edit(face, "smile", 3))


def test_analogy_answers(page, address, vaes):
    faces = vaes[0].sample(5, rng=FIRST_SEED)
    open_tab(page, address, "edit")
    page.locator("#analogy-run").click()
    wait_until(page, "#analogy-out", Studio(vaes[0]).analogy(*faces[1:4])[None])


def test_picked_faces_have_children(page, address, vaes):
    studio = Studio(vaes[0])
    open_tab(page, address, "evolve")
    wait_until(page, "#evolve-faces", studio.evolve(Lineage(FIRST_SEED)))
    for place in (3, 5):
        page.locator("#evolve-faces button").nth(place).click()
    page.locator("#evolve-next").click()
    line = Lineage(FIRST_SEED).child((3, 5), 35)
    wait_until(page, "#evolve-faces", studio.evolve(line))
    assert page.locator("#evolve-lineage input, #evolve-lineage textarea").input_value() == str(line)
    assert "Generation 2" in page.locator("#evolve-heading").inner_text()
    page.reload()
    wait_until(page, "#evolve-faces", studio.evolve(line))


def test_the_card_names_the_model_and_its_device(page, address, vaes):
    open_tab(page, address, "about")
    text = page.locator("#card").inner_text()
    assert vaes[0].config.model_id in text
    assert "cpu, ONNX Runtime" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", TABS)
def test_nothing_is_wider_than_a_phone(page, address, tab, scheme):
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{address}?tab={tab}")
    page.locator("#tabs").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
