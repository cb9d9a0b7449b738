"""The page's API: what it answers, what it refuses and how, and that visitors never meet."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from demo.app import build_demo
from demo.components import FaceGrid
from demo.components.data_uri import from_uri, picture_from_uri, read_picture, to_uri
from demo.components.face_input import reduce
from tests.demo.load import crowd
from vae_runtime import ImageError, InputError, save_png
from vae_runtime.hub import bundled_model

BUNDLED, TINY = bundled_model().name, "tiny"


@pytest.fixture
def faces(vaes, tmp_path):
    """Four faces as files for a client."""
    from gradio_client import handle_file

    drawn = vaes[0].sample(4, rng=5)
    return drawn, [handle_file(save_png(face, tmp_path / f"{i}.png")) for i, face in enumerate(drawn)]


def pixels(answer) -> np.ndarray:
    return np.stack([from_uri(face["src"]) for face in answer])


def test_sample_gives_the_pixels_of_the_runtime(client, vaes):
    answer = client.predict(BUNDLED, 5, 11, 0.8, "model", [], api_name="/sample")
    assert np.array_equal(pixels(answer), vaes[0].sample(5, rng=11, temperature=0.8))
    answer = client.predict(TINY, 5, 11, 1, "unit", [], api_name="/sample")
    assert np.array_equal(pixels(answer), vaes[1].sample(5, rng=11, prior="unit"))


def test_reconstruct_gives_both_pictures_the_figures_and_the_chart(client, vaes, faces):
    drawn, files = faces
    pair, text, chart = client.predict(BUNDLED, files[0], api_name="/reconstruct")
    assert np.array_equal(from_uri(pair["before"]), drawn[0])
    assert np.array_equal(from_uri(pair["after"]), vaes[0].reconstruct(drawn[0])[0])
    assert "dB" in text
    assert chart.count("<span") == 48


def test_interpolate_gives_the_way_and_the_square(client, vaes, faces):
    drawn, files = faces
    way, square = client.predict(BUNDLED, *files, "lerp", 4, api_name="/interpolate")
    assert len(way) == 3 * 3 + 1
    assert len(square) == 49
    way, square = client.predict(BUNDLED, files[0], None, files[1], None, "slerp", 6, api_name="/interpolate")
    assert np.array_equal(pixels(way), vaes[0].interpolate(drawn[0], drawn[1], 6))
    assert square == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webm", "gif", "webp"])
def test_a_loop_is_a_file_to_keep(client, faces, kind):
    pytest.importorskip("cv2")
    film = client.predict(BUNDLED, *faces[1][:2], None, None, "slerp", kind, api_name="/loop")
    head = base64.b64decode(film["src"].partition(",")[2])[:16]
    assert head.startswith({"webm": b"\x1aE\xdf\xa3", "gif": b"GIF8", "webp": b"RIFF"}[kind])
    assert (film["name"], film["frames"], film["seconds"]) == (f"anime-vae-loop.{kind}", 48, 4.0)


def test_edit_and_analogy_give_the_pixels_of_the_runtime(client, vaes, faces):
    _, files = faces
    tiny = vaes[1]
    seen = np.concatenate([tiny.prepare(file["path"]) for file in files[:3]])
    answer = client.predict(TINY, files[0], {"smile": 1.5}, api_name="/edit")
    assert np.array_equal(pixels(answer), tiny.edit(seen[0], "smile", 1.5))
    a, b, c = tiny.encode(seen)[0]
    answer = client.predict(TINY, *files[:3], api_name="/analogy")
    assert np.array_equal(pixels(answer)[0], tiny.decode(a - b + c)[0])


def test_a_name_has_the_face_that_the_runtime_gives_it(client, vaes):
    answer = client.predict(BUNDLED, "  ADA lovelace ", api_name="/face_of")
    assert np.array_equal(pixels(answer)[0], vaes[0].face_of("Ada Lovelace"))
    assert client.predict(BUNDLED, " ", api_name="/face_of") == []


def test_evolve_follows_its_lineage(client):
    first = client.predict(BUNDLED, "7", api_name="/evolve")
    second = client.predict(BUNDLED, "7-3.5x40", api_name="/evolve")
    assert len(first) == len(second) == 16
    assert first != second
    assert second == client.predict(BUNDLED, "7-3.5x40", api_name="/evolve")


def test_each_endpoint_is_named_and_described(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    names = "sample reconstruct interpolate loop edit analogy inpaint invert evolve face_of"
    assert set(named) == {f"/{name}" for name in names.split()}
    assert all(endpoint["description"] for endpoint in named.values())
    names = [parameter["parameter_name"] for parameter in named["/sample"]["parameters"]]
    assert names == ["model", "faces", "seed", "temperature", "prior", "where"]


def png(mode: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


FACE = {"src": to_uri(np.full((64, 64, 3), 90, np.uint8))}
PAIR = [FACE, FACE, None, None]
MARK = {"_type": "gradio.FileData"}


def tall(side: int) -> str:
    """A PNG of few bytes and many pixels, as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png("1", (side, side))).decode()


# (endpoint, data, what the refusal names). All but one value is good, so it is the bad one that is refused.
BAD_CALLS = [
    ("sample", [BUNDLED, 65, 1, 1, "model", []], "64"),
    ("sample", [BUNDLED, 0, 1, 1, "model", []], "1"),
    ("sample", [BUNDLED, "nan", 1, 1, "model", []], None),
    ("sample", [BUNDLED, 4, -1, 1, "model", []], None),
    ("sample", [BUNDLED, 4, 1e300, 1, "model", []], None),
    ("sample", [BUNDLED, 4, 1, 99, "model", []], None),
    ("sample", [BUNDLED, 4, 1, True, "model", []], None),
    ("sample", [BUNDLED, 4, 1, None, "model", []], None),
    ("sample", [BUNDLED, [4], 1, 1, "model", []], None),
    ("sample", [BUNDLED, 4, {"a": 1}, 1, "model", []], None),
    ("sample", [BUNDLED, 4, 1, 1, "../../etc/passwd", []], None),
    ("sample", [BUNDLED, 4, 1, 1, "model", ["hair=blue"] * 17], "where"),
    ("sample", [BUNDLED, 4, 1, 1, "model", ["blue"]], "where"),
    ("sample", [BUNDLED, 4, 1, 1, "model", ["nose=blue"]], None),
    ("sample", ["../../etc", 4, 1, 1, "model", []], None),
    ("sample", [None, 4, 1, 1, "model", []], None),
    ("sample", [BUNDLED], None),
    ("sample", [], None),
    ("sample", "no list", None),
    ("reconstruct", [BUNDLED, {"path": "../../../etc/passwd", "meta": MARK}], None),
    ("reconstruct", [BUNDLED, {"path": "/etc/passwd", "meta": MARK}], None),
    ("reconstruct", [BUNDLED, {"path": "/proc/self/environ", "meta": MARK}], None),
    ("reconstruct", [BUNDLED, {"path": "http://127.0.0.1:1/x.png", "meta": MARK}], None),
    ("reconstruct", [BUNDLED, {"src": "file:///etc/passwd"}], "data URI"),
    ("reconstruct", [BUNDLED, {"src": "/etc/passwd"}], "data URI"),
    ("reconstruct", [BUNDLED, {"src": {"path": "/etc/passwd"}}], "data URI"),
    ("reconstruct", [BUNDLED, {"src": tall(30_000)}], "pixels"),
    ("reconstruct", [BUNDLED, "/etc/passwd"], "data URI"),
    ("reconstruct", [BUNDLED, 7], "data URI"),
    ("reconstruct", ["../../etc", FACE], None),
    ("interpolate", [BUNDLED, *PAIR, "cubic", 4], None),
    ("interpolate", [BUNDLED, None, None, None, None, "cubic", 4], None),
    ("interpolate", [BUNDLED, {"src": "/etc/passwd"}, FACE, None, None, "slerp", 4], "data URI"),
    ("interpolate", [BUNDLED, *PAIR, "slerp", 1e9], None),
    ("interpolate", [BUNDLED, *PAIR, "slerp", "x"], None),
    ("interpolate", ["none", *PAIR, "slerp", 4], None),
    ("loop", [BUNDLED, None, None, None, None, "slerp", "webm"], "two to four"),
    ("loop", [BUNDLED, *PAIR, "slerp", "../x.sh"], None),
    ("loop", [BUNDLED, *PAIR, "cubic", "gif"], None),
    ("edit", [BUNDLED, FACE, {"brightness": 99}], "brightness"),
    ("edit", [BUNDLED, FACE, {"brightness": "x"}], "brightness"),
    ("edit", [BUNDLED, FACE, {"brightness": None}], "brightness"),
    ("edit", [BUNDLED, FACE, {"nose": 1}], "nose"),
    ("edit", [BUNDLED, FACE, {"<img src=x onerror=alert(1)>": 1}], "strengths"),
    ("edit", [BUNDLED, None, {"brightness": 99}], "brightness"),
    ("edit", [BUNDLED, FACE, 7], "strengths"),
    ("edit", [BUNDLED, FACE, [1, 2]], "strengths"),
    ("edit", ["none", FACE, {}], None),
    ("analogy", [BUNDLED, None, FACE, FACE], "A first"),
    ("analogy", [BUNDLED, FACE, FACE, None], "C first"),
    ("analogy", ["none", FACE, FACE, FACE], None),
    ("evolve", [BUNDLED, "7-99x40"], "0 to 15"),
    ("evolve", [BUNDLED, "7; rm -rf /"], "lineage"),
    ("evolve", [BUNDLED, "<script>alert(1)</script>"], "lineage"),
    ("evolve", [BUNDLED, "7" * 7000], "lineage"),
    ("evolve", [BUNDLED, "7" * 100_000], None),
    ("face_of", [BUNDLED, "x" * 201], "200"),
    ("breed", [BUNDLED, [], "7", 35], None),  # private: not there for a client
]
ODD = [
    "\0",
    "NaN",
    [],
    [[[]]],
    {"path": "\0", "meta": {"_type": "gradio.FileData"}},
    {"__type__": "update"},
    "../" * 40,
]
BAD_CALLS += [("sample", [BUNDLED, 4, odd, 1, "model", []], None) for odd in ODD]
BAD_CALLS += [("evolve", [BUNDLED, odd], None) for odd in ODD]
BAD_CALLS += [("reconstruct", [BUNDLED, odd], None) for odd in ODD if odd != {"__type__": "update"}]


def call(address: str, name: str, data: object) -> str:
    """All that the server says to one call by the raw protocol, in words."""
    body = json.dumps({"data": data}).encode()
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(f"{address}gradio_api/call/{name}", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{address}gradio_api/call/{name}/{event}", timeout=30) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


def leaks(text: str) -> list[str]:
    root = str(Path(__file__).parents[2])
    return [word for word in ("Traceback", 'File "', "site-packages", root, "root:x:", "/usr/lib") if word in text]


@pytest.mark.parametrize(("name", "data", "named"), BAD_CALLS, ids=lambda value: str(value)[:40])
def test_a_hostile_call_is_refused_and_learns_nothing(address, client, name, data, named):
    said = call(address, name, data)
    assert "event: complete" not in said
    assert not leaks(said)
    assert "<img" not in said
    assert len(said) < 2000
    if named:
        assert named.lower() in said.lower()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("reconstruct", [BUNDLED, None]),
        ("reconstruct", [BUNDLED, {}]),
        ("interpolate", [BUNDLED, FACE, None, None, None, "slerp", 4]),
        ("edit", [BUNDLED, None, {}]),
    ],
)
def test_no_picture_is_no_error_while_one_is_chosen(address, client, name, data):
    said = call(address, name, data)
    assert "event: complete" in said
    assert "data:image" not in said


def test_a_grid_of_large_pictures_is_refused_before_it_is_decoded():
    """16 small files, each of which would be 147 MB in memory."""
    import gradio as gr

    grid = FaceGrid("Faces", most=16)
    bomb = tall(7000)
    tracemalloc.start()
    with pytest.raises(gr.Error, match="7000"):
        grid.preprocess([{"src": bomb, "picked": True}] * 16)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_large_pictures_are_reduced_as_soon_as_they_are_read(rng):
    picture = rng.integers(0, 256, (1500, 2200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    with pytest.raises(ImageError, match="8 MB"):
        picture_from_uri(uri)
    assert read_picture(file.getvalue()).shape == (512, 512, 3)


@pytest.mark.parametrize(
    "payload", [None, 7, [], {}, "", "x", "/etc/passwd", "data:image/png;base64,%%%", tall(30_000), ["x"] * 3]
)
def test_what_the_browser_could_not_read_is_read_or_refused_in_a_sentence(payload):
    found = reduce(payload)
    assert list(found) == ["error"]
    assert not leaks(found["error"])


def test_a_body_beyond_the_limit_is_not_read(address):
    request = urllib.request.Request(
        f"{address}gradio_api/call/evolve", b"[" * (17 * 2**20), {"Content-Type": "application/json"}
    )
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert getattr(refused.value, "code", 413) == 413


FILES = [
    "gradio_api/file=/etc/passwd",
    "gradio_api/file=../../../../etc/passwd",
    "gradio_api/file=%2e%2e/%2e%2e/etc/passwd",
    "gradio_api/file=demo/app.py",
    "gradio_api/file=pyproject.toml",
    "gradio_api/file=/proc/self/environ",
    "gradio_api/file=http://127.0.0.1:1/",
    "gradio_api/proxy=http://127.0.0.1:1/",
    "file=/etc/passwd",
    "static/../../../etc/passwd",
    "static/%2e%2e/%2e%2e/pyproject.toml",
    "assets/..%2f..%2f..%2fpyproject.toml",
    "theme.css/../app.py",
    "gradio_api/stream/x/y/z/etc/passwd",
    "monitoring",
    "monitoring/summary",
    "gradio_api/mcp/sse",
    ".env",
    ".git/config",
    "gradio_api/custom_component/x/y/z/../../etc/passwd",
]


@pytest.mark.parametrize("path", FILES)
def test_no_file_of_the_machine_is_served(address, path):
    try:
        with urllib.request.urlopen(address + path, timeout=10) as answer:
            said = answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
    assert "root:x:" not in said
    assert "[project]" not in said
    assert "import " not in said or "<script" in said
    assert not [word for word in leaks(said) if word != "/usr/lib"]


@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "gradio_api/openapi.json"])
def test_what_the_page_says_of_itself_holds_no_path(address, path):
    with urllib.request.urlopen(address + path, timeout=20) as answer:
        assert not leaks(answer.read().decode())


def upload(address: str, data: bytes) -> str:
    edge = "----edge"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'.encode()
    body = head + data + f"\r\n--{edge}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    request = urllib.request.Request(f"{address}gradio_api/upload", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)[0]


BAD_FILES = {
    "empty": b" ",
    "text": b"hello",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "half": png("RGB", (64, 64))[:60],
    "bomb": png("1", (30_000, 30_000)),
    "html": b"<html><img src=x onerror=alert(1)>",
}


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_upload_is_refused_with_a_sentence(address, data):
    said = call(
        address, "reconstruct", [BUNDLED, {"path": upload(address, data), "meta": {"_type": "gradio.FileData"}}]
    )
    assert "event: error" in said
    assert "icture" in said or "pixels" in said
    assert not leaks(said)
    assert "onerror" not in said


def test_a_file_beyond_the_limit_is_not_taken(address):
    with pytest.raises(urllib.error.HTTPError) as refused:
        upload(address, b"\0" * (9 * 2**20))
    assert refused.value.code == 413


@pytest.mark.slow
def test_visitors_never_see_each_others_pictures(address, vaes, tmp_path):
    """Two clients, interleaved: each answer is that of its own picture."""
    from gradio_client import Client, handle_file

    drawn = vaes[0].sample(2, rng=99)
    expected = vaes[0].reconstruct(drawn)

    def visit(who: int) -> int:
        client = Client(address, verbose=False)
        file = save_png(drawn[who], tmp_path / f"visitor-{who}.png")
        right = 0
        for _ in range(25):
            pair, *_ = client.predict(BUNDLED, handle_file(file), api_name="/reconstruct")
            right += np.array_equal(from_uri(pair["after"]), expected[who])
        return right

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(visit, (0, 1))) == [25, 25]


@pytest.mark.slow
def test_a_crowd_meets_no_error(address):
    """The short form of tests/demo/load.py: eight visitors, three kinds of requests, every answer the right one."""
    tally = crowd(urlsplit(address).port, 8, 4)
    assert set(tally.outcomes) == {"ok"}
    assert tally.outcomes["ok"] >= 16


@pytest.mark.slow
def test_too_many_at_once_are_told_that_the_page_is_busy(address):
    """More requests than the queue holds: some are answered, the others are told, none is lost."""
    tally = crowd(urlsplit(address).port, 120, 2)
    assert set(tally.outcomes) == {"ok", "busy"}
    assert set(crowd(urlsplit(address).port, 1, 1).outcomes) == {"ok"}


def test_the_colors_of_a_face_survive_the_wire(rng):
    face = rng.integers(0, 256, (9, 9, 3), np.uint8)
    assert np.array_equal(from_uri(to_uri(face)), face)
    with pytest.raises(ValueError, match="PNG data URI"):
        from_uri("data:text/html;base64," + base64.b64encode(b"x").decode())


def test_two_models_of_one_name_and_none_are_refused(vaes):
    for models in ([], [vaes[0], vaes[0]]):
        with pytest.raises(InputError, match="models: "):
            build_demo(models)
