"""Each tab used as a person would use it, in a real browser; its pictures compared with those of vae_runtime."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from demo.components.data_uri import from_uri, picture_from_uri, to_uri
from demo.evolution import Lineage
from demo.service import Service
from demo.tabs import TABS
from demo.tabs.sample import COUNT
from vae_runtime.figures import save_png

TITLES = {tab.name: tab.title for tab in TABS}


@pytest.fixture(scope="module")
def services(vaes) -> list[Service]:
    return [Service(vae) for vae in vaes]


def shown(page, place: str) -> list[np.ndarray]:
    """The pictures that a grid shows, decoded from what the browser holds; an empty list while it is being drawn."""
    sources = page.locator(f"{place} img:not(.mask)").evaluate_all(
        "images => images.map((image) => image.getAttribute('src'))"
    )
    return [] if not all(sources) else [from_uri(source) for source in sources]


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
    on_tab(page, tab)
    page.locator("html[data-restored]").wait_for(state="attached")


def on_tab(page, tab: str) -> None:
    page.get_by_role("tab", name=TITLES[tab], exact=True, selected=True).wait_for()


def choose_model(page, name: str) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name=name).click()


def pick(page, grid: str, *places: int) -> None:
    for place in places:
        page.locator(f"{grid} button.face").nth(place).click()


def upload(page, place: str, file: object) -> None:
    page.locator(f"{place} input[type=file]").set_input_files(file)


def sent(page, place: str) -> np.ndarray:
    """The picture that an input holds, as the server reads it."""
    return picture_from_uri(page.locator(f"{place} .picture img").get_attribute("src"))


def test_the_first_faces_are_there_at_once_and_new_ones_come(page, address, services):
    page.goto(address)
    page.locator("#sample-faces img").first.wait_for()
    service = services[0]
    wait_until(page, "#sample-faces", service.sample(COUNT, service.starters.seed))
    page.locator("#new-faces").click()
    page.wait_for_url("**seed=**")
    page.locator("#sample-advanced button").first.click()
    seed = int(page.locator("#sample-seed input").input_value())
    assert seed != service.starters.seed
    wait_until(page, "#sample-faces", service.sample(COUNT, seed))


def test_a_link_restores_what_was_seen(page, address, vaes):
    open_tab(page, address, "sample", model="tiny", faces=5, seed=42, temperature=0.5, prior="unit")
    wait_until(page, "#sample-faces", vaes[1].sample(5, rng=42, temperature=0.5, prior="unit"))
    assert page.locator("#model input").input_value() == "tiny"


@pytest.mark.parametrize(
    "query",
    [
        "tab=sample&faces=1e9&seed=-4",
        "tab=sample&seed=nan&temperature=inf",
        "tab=sample&model=../x&prior=%3Cscript%3E",
        "tab=../x&__proto__=1",
        "tab=edit&face=%24%7Balert(1)%7D&strengths=%7B%22x%22%3A",
        "tab=edit&strengths=[[[[&face=AAAA",
        "tab=interpolate&face1=../x&method=cubic&steps=-1",
        "tab=inpaint&steps=1e400",
        "tab=evolve&lineage=%24%7Balert(1)%7D",
        "tab=about&tab=sample",
    ],
)
def test_a_hostile_link_shows_the_page_as_it_is(page, address, services, query):
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(f"{address}?{query}")
    page.get_by_role("tab", selected=True).wait_for()
    page.get_by_role("tab", name=TITLES["sample"], exact=True).click()
    wait_until(page, "#sample-faces", services[0].sample(COUNT, services[0].starters.seed))
    assert dialogs == []


def test_picked_faces_go_to_another_tab(page, address, services):
    service = services[0]
    faces = service.sample(COUNT, service.starters.seed)
    page.goto(address)
    pick(page, "#sample-faces", 2, 5)
    assert page.locator("#sample-faces [aria-pressed=true]").count() == 2
    page.locator("#sample-faces-to-interpolate").click()
    on_tab(page, "interpolate")
    wait_until(page, "#interpolate-strip", service.blend(faces[[2, 5]]))
    assert "four" in page.locator("#interpolate-square .empty").inner_text()
    page.get_by_role("tab", name=TITLES["sample"]).click()
    pick(page, "#sample-faces", 7, 9)
    page.locator("#sample-faces-to-interpolate").click()
    wait_until(page, "#interpolate-square", service.square(faces[[2, 5, 7, 9]]))
    wait_until(page, "#interpolate-strip", service.blend(faces[[2, 5, 7, 9]]))
    page.get_by_role("button", name="Remove: Face 2").click()
    wait_until(page, "#interpolate-strip", service.blend(faces[[2, 7, 9]]))


def test_without_a_pick_the_page_says_what_to_do(page, address):
    page.goto(address)
    page.locator("#sample-faces img").first.wait_for()
    page.locator("#sample-faces-to-edit").click()
    page.get_by_text("Pick a face first").wait_for()


def test_an_uploaded_picture_is_reconstructed(page, address, vaes, tmp_path):
    face = vaes[0].sample(1, rng=77)[0]
    open_tab(page, address, "reconstruct")
    page.get_by_role("button", name="Remove: Your picture").click()
    page.get_by_text("Give a picture").wait_for()
    upload(page, "#reconstruct-in", save_png(face, tmp_path / "me.png"))
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(face)[0], face]))
    page.locator("#reconstruct-out input").fill("80")
    assert page.locator(".pair").evaluate("box => box.style.getPropertyValue('--cut')") == "80%"
    page.reload()
    on_tab(page, "reconstruct")
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(face)[0], face]))


def test_a_refused_file_clears_the_old_answer_and_gets_one_sentence(page, address, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    open_tab(page, address, "reconstruct")
    page.locator("#reconstruct-out .pair").wait_for()
    upload(page, "#reconstruct-in", tmp_path / "no.png")
    page.get_by_text("Not a picture that can be read").wait_for()
    page.get_by_text("Give a picture").wait_for()
    assert page.get_by_text("Not a picture that can be read").count() == 1


def test_a_photograph_beyond_8_mb_is_reduced_in_the_browser(page, address, vaes, tmp_path, rng):
    """48 megapixels, sideways by its EXIF tag."""
    noise = rng.integers(0, 256, (750, 1000, 3), np.uint8)
    picture = Image.fromarray(noise).resize((8000, 6000), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    assert (tmp_path / "photo.jpg").stat().st_size > 8 * 2**20
    open_tab(page, address, "reconstruct")
    bodies: list[int] = []
    page.on("request", lambda request: bodies.append(len(request.post_data_buffer or b"")))
    upload(page, "#reconstruct-in", tmp_path / "photo.jpg")
    page.wait_for_function(
        "document.querySelector('#reconstruct-in img').naturalWidth === 512"
        " && document.querySelector('#reconstruct-in img').src.startsWith('data:image/jpeg')"
    )
    taken = sent(page, "#reconstruct-in")
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(taken)[0], vaes[0].prepare(taken)[0]]))
    assert max(bodies) < 2**20
    upright = np.asarray(picture.crop((1000, 0, 7000, 6000)).rotate(-90).resize((64, 64)), float)
    assert np.corrcoef(upright.ravel(), vaes[0].prepare(taken)[0].astype(float).ravel())[0, 1] > 0.9


def test_a_format_that_only_the_server_reads_goes_through_it(page, address, vaes, tmp_path):
    from vae_runtime.images import FORMATS

    if "TIFF" not in FORMATS:
        pytest.skip("the runtime does not read TIFF")
    face = vaes[0].sample(1, rng=79)[0]
    Image.fromarray(face).save(tmp_path / "me.tiff")
    open_tab(page, address, "reconstruct")
    upload(page, "#reconstruct-in", tmp_path / "me.tiff")
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(face)[0], face]))


def test_a_picture_of_the_camera_is_reconstructed(page, address, vaes):
    open_tab(page, address, "reconstruct")
    page.locator("#reconstruct-out .pair").wait_for()
    page.get_by_role("button", name="Camera: Your picture").click()
    page.wait_for_function("document.querySelector('#reconstruct-in video')?.videoWidth > 0")
    before = page.locator("#reconstruct-in .picture img").get_attribute("src")
    page.get_by_role("button", name="Take the picture").click()
    page.locator("#reconstruct-in video").wait_for(state="detached")
    page.wait_for_function(
        "before => document.querySelector('#reconstruct-in .picture img').getAttribute('src') !== before", arg=before
    )
    taken = sent(page, "#reconstruct-in")
    assert taken.std() > 5  # the camera's picture, not a black frame
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(taken)[0], vaes[0].prepare(taken)[0]]))


def test_a_picture_of_the_clipboard_is_reconstructed(page, address, vaes):
    face = vaes[0].sample(1, rng=78)[0]
    open_tab(page, address, "reconstruct")
    page.locator("#reconstruct-out .pair").wait_for()
    page.evaluate(
        """async (uri) => {
            const blob = await (await fetch(uri)).blob(), data = new DataTransfer();
            data.items.add(new File([blob], 'me.png', {type: 'image/png'}));
            document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}));
        }""",
        to_uri(face),
    )
    wait_until(page, "#reconstruct-out", np.stack([vaes[0].reconstruct(face)[0], face]))


def test_examples_are_answered(page, address, services):
    service = services[0]
    open_tab(page, address, "reconstruct")
    pick(page, "#reconstruct-examples", 1)
    found = service.reconstruct(service.examples[1])
    wait_until(page, "#reconstruct-out", np.stack([found.face, found.original]))


def test_the_way_and_the_loop(page, address, services):
    pytest.importorskip("cv2")
    service = services[0]
    faces = service.starter_faces[:4]
    open_tab(page, address, "interpolate")
    wait_until(page, "#interpolate-square", service.square(faces))
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    page.get_by_role("radio", name="straight (lerp)").click()
    wait_until(page, "#interpolate-strip", service.blend(faces, 8, "lerp"))
    page.locator("#make-loop").click()
    page.locator("#loop video").wait_for()
    page.wait_for_function("document.querySelector('#loop video').videoWidth === 256")
    with page.expect_download() as download:
        page.locator("#loop a").click()
    assert download.value.path().read_bytes().startswith(b"\x1aE\xdf\xa3")


def test_sliders_change_the_face_live_and_can_be_undone(page, address, services):
    service = services[0]
    face, name = service.example_faces[2], next(iter(service.directions))
    board = [name for group in service.board().groups for name, _ in group.names]
    first, second = board[0], board[1]
    assert name in board
    open_tab(page, address, "edit")
    wait_until(page, "#edit-out", service.edit(face, {})[None])
    page.locator(f"#edit-sliders input[data-name='{first}']").fill("2")
    wait_until(page, "#edit-out", service.edit(face, {first: 2.0})[None])
    slider = page.locator(f"#edit-sliders input[data-name='{second}']")
    if not slider.is_visible():  # in a group that is folded at first
        group = page.locator("#edit-sliders details").filter(has=page.locator(f"input[data-name='{second}']"))
        group.locator("summary").click()
    slider.fill("-1.5")
    both = service.edit(face, {first: 2.0, second: -1.5})[None]
    wait_until(page, "#edit-out", both)
    page.reload()
    wait_until(page, "#edit-out", both)
    page.get_by_role("button", name="Reset").click()
    wait_until(page, "#edit-out", service.edit(face, {})[None])
    page.get_by_role("button", name="Undo").click()
    wait_until(page, "#edit-out", both)


def test_the_face_stays_in_view_on_a_phone(page, address):
    page.set_viewport_size({"width": 390, "height": 700})
    open_tab(page, address, "edit")
    page.locator("#edit-out img").wait_for()
    page.locator("#edit-in").scroll_into_view_if_needed()
    box = page.locator("#edit-out .face").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 700


def model_faces(service: Service, face: np.ndarray) -> dict[str, np.ndarray]:
    """What each tab must show after a change to this model, where the visitor gave `face`."""
    start = service.starter_faces
    example = service.reconstruct(service.examples[0])
    return {
        "sample": service.sample(COUNT, service.starters.seed),
        "reconstruct": np.stack([example.face, example.original]),
        "interpolate": service.blend(start[:4]),
        "edit": service.edit(face, {})[None],
        "evolve": service.evolve(Lineage(service.starters.line)),
    }


OUTPUTS = {
    "sample": "#sample-faces",
    "reconstruct": "#reconstruct-out",
    "interpolate": "#interpolate-strip",
    "edit": "#edit-out",
    "evolve": "#evolve-faces",
}


def test_another_model_is_what_every_tab_shows_also_after_a_reload(page, address, services, tmp_path):
    face = services[0].vae.sample(1, rng=3)[0]
    open_tab(page, address, "edit")
    upload(page, "#edit-in", save_png(face, tmp_path / "me.png"))
    wait_until(page, "#edit-out", services[0].edit(face, {})[None])
    page.wait_for_function("history.state?.animeVAE?.tabs?.edit?.face?.src")  # noted after the answer is shown
    choose_model(page, "tiny")
    page.locator("#edit-sliders input[data-name=smile]").wait_for()
    expected = model_faces(services[1], face)
    for _ in range(2):
        for tab, place in OUTPUTS.items():
            page.get_by_role("tab", name=TITLES[tab], exact=True).click()
            wait_until(page, place, expected[tab])
        page.get_by_role("tab", name=TITLES["edit"], exact=True).click()
        page.locator("#edit-sliders input[data-name=smile]").wait_for()
        assert page.locator("#edit-sliders input[data-name=brightness]").count() == 0
        page.wait_for_function("history.state?.animeVAE?.tab === 'edit' && history.state.animeVAE.model === 'tiny'")
        page.reload()
        on_tab(page, "edit")
    page.locator("#edit-sliders input[data-name=smile]").fill("3")
    wait_until(page, "#edit-out", services[1].edit(face, {"smile": 3})[None])


def test_a_link_to_another_model_has_its_sliders(page, address, services):
    open_tab(page, address, "edit", model="tiny", strengths=json.dumps({"smile": 2, "brightness": 1}))
    page.locator("#edit-sliders input[data-name=smile]").wait_for()
    assert page.locator("#edit-sliders input[data-name=brightness]").count() == 0
    wait_until(page, "#edit-out", services[1].edit(services[1].example_faces[2], {"smile": 2})[None])


def test_a_copied_link_brings_another_visitor_the_same_face(page, browser, address, services, tmp_path):
    service, face = services[0], services[0].vae.sample(1, rng=5)[0]
    first = next(name for group in service.board().groups for name, _ in group.names)
    open_tab(page, address, "edit")
    upload(page, "#edit-in", save_png(face, tmp_path / "me.png"))
    page.locator(f"#edit-sliders input[data-name='{first}']").fill("2")
    wait_until(page, "#edit-out", service.edit(face, {first: 2.0})[None])
    page.locator("#share").click()
    page.get_by_text("Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert "face=" in link
    assert "face=" not in page.url
    other = browser.new_page()
    other.goto(link)
    on_tab(other, "edit")
    there = service.face_of_token(service.token(face))
    wait_until(other, "#edit-out", service.edit(there, {first: 2.0})[None])
    other.close()


def test_back_and_forward_go_through_the_tabs(page, address, services):
    page.goto(address)
    page.locator("html[data-restored]").wait_for(state="attached")
    for tab in ("edit", "evolve"):
        page.get_by_role("tab", name=TITLES[tab], exact=True).click()
        page.wait_for_url(f"**tab={tab}**")
    page.go_back()
    on_tab(page, "edit")
    page.go_back()
    on_tab(page, "sample")
    page.go_forward()
    on_tab(page, "edit")
    wait_until(page, "#edit-out", services[0].edit(services[0].example_faces[2], {})[None])


def test_analogy_answers(page, address, services):
    open_tab(page, address, "edit")
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    page.locator("#analogy-run").click()
    wait_until(page, "#analogy-out", services[0].analogy(*services[0].analogy_faces)[None])


def test_picked_faces_have_children(page, address, services):
    service = services[0]
    open_tab(page, address, "evolve")
    line = Lineage(service.starters.line)
    wait_until(page, "#evolve-faces", service.evolve(line))
    pick(page, "#evolve-faces", 3, 5)
    page.locator("#evolve-next").click()
    line = line.child((3, 5), 35)
    wait_until(page, "#evolve-faces", service.evolve(line))
    assert "Generation 2" in page.locator("#evolve-heading").inner_text()
    page.reload()
    wait_until(page, "#evolve-faces", service.evolve(line))


def test_a_name_is_answered_as_it_is_typed_and_never_evaluated(page, address, vaes):
    open_tab(page, address, "names", text="%24%7Balert(1)%7D%3Cb%3E")
    wait_until(page, "#names-out", vaes[0].face_of("${alert(1)}<b>")[None])
    page.locator("#names-text textarea, #names-text input").fill("Grace Hopper")
    wait_until(page, "#names-out", vaes[0].face_of("grace hopper")[None])
    page.reload()
    wait_until(page, "#names-out", vaes[0].face_of("grace hopper")[None])


def test_favorites_stay_and_can_be_downloaded(page, address, services):
    faces = services[0].sample(COUNT, services[0].starters.seed)
    page.goto(address)
    pick(page, "#sample-faces", 1, 4)
    page.locator("#sample-faces-keep").click()
    page.get_by_text("2 faces added").wait_for()
    page.reload()
    page.locator("#favorites-box button").first.click()
    wait_until(page, "#favorites", faces[[1, 4]])
    pick(page, "#favorites", 1)
    with page.expect_download() as download:
        page.locator("#favorites-save").click()
    with Image.open(io.BytesIO(download.value.path().read_bytes())) as saved:
        assert saved.size == (512, 512)
        expected = Image.fromarray(faces[4]).resize((512, 512), Image.Resampling.LANCZOS)
        difference = np.asarray(saved.convert("RGB")).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 3
    page.locator("#favorites-drop").click()
    wait_until(page, "#favorites", faces[[1]])


def test_the_card_names_the_model_and_its_device(page, address, vaes):
    open_tab(page, address, "about")
    assert vaes[0].config.name in page.locator("#card").inner_text()
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    page.locator("#figures table").wait_for()
    text = page.locator("#figures").inner_text()
    assert vaes[0].config.model_id in text
    assert "cpu, ONNX Runtime" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", TITLES)
def test_nothing_is_wider_than_a_phone(page, address, tab, scheme):
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{address}?tab={tab}")
    page.locator("html[data-restored]").wait_for(state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
