"""A running page over two models, a client of its API, and a browser; tests are skipped where these are missing."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_model import DIM, build_model
from vae_runtime import VAE, ModelConfig
from vae_runtime.config import INVERSE_FILE
from vae_runtime.directions import Directions
from vae_runtime.hub import bundled_model
from vae_runtime.prior import Prior
from vae_train.export.golden import write_golden

ROOT = Path(__file__).parents[2]

collect_ignore_glob = [] if find_spec("gradio") else ["test_*.py"]  # the extra `demo`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what drives a browser, or builds or serves a page of its own.

    Gradio's client leaves sockets and event loops to the garbage collector.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
            fixtures = set(getattr(item, "fixturenames", ()))
            if "page" in fixtures:
                item.add_marker(pytest.mark.browser)
            if fixtures & {"page", "site", "strict"}:
                item.add_marker(pytest.mark.slow)


def furnished(folder: Path) -> Path:
    """The tiny model with a fitted prior and named directions beside its graphs, and without inverse.onnx."""
    build_model(folder)
    means = np.array([[1, 0, 0, 0], [0, -1, 0, 0.5]], np.float32)
    scales = np.stack([np.eye(DIM), 0.5 * np.eye(DIM)])
    Prior(np.array([0.25, 0.75], np.float32), means, scales).save(folder / "prior.npz")
    Directions(("pca-1", "pca-2", "smile"), np.eye(DIM)[:3]).save(folder / "directions.npz")
    config = ModelConfig.load(folder)
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("prior.npz", "directions.npz")
    }
    files = {**config.files, **digests}
    if files.pop(INVERSE_FILE, None):
        (folder / INVERSE_FILE).unlink()
    dataclasses.replace(config, files=files).save(folder)
    write_golden(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A tiny model with most that a model can have; what it cannot do, the page must say."""
    return furnished(tmp_path_factory.mktemp("furnished") / "tiny")


@pytest.fixture(scope="session")
def vaes(folder) -> list[VAE]:
    """The bundled model, and the tiny one."""
    return [VAE.load(device="cpu", threads=1), VAE.load(folder, device="cpu", threads=1)]


@contextmanager
def serving(command: list[str], port: int, **options: Any) -> Iterator[tuple[str, int]]:
    """A server in a process of its own, as people start it; yields its address and process, and ends it."""
    address = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, **options)
        try:
            for _ in range(600):
                time.sleep(0.1)
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except OSError:
                    if server.poll() is not None:
                        break
            else:
                server.kill()
            if server.poll() is not None:
                log.seek(0)
                pytest.fail(f"the server ended: {log.read()[-2000:]}")
            yield address, server.pid
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def serving_files(folder: Path) -> Iterator[str]:
    """The address of the files of a static Space, served with its headers."""

    class Files(SimpleHTTPRequestHandler):
        extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

        def end_headers(self) -> None:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chromium_path() -> str | None:
    """Debian's Chromium, or whatever is called so."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@pytest.fixture(scope="session")
def address(folder) -> Iterator[str]:
    """`python -m demo` over both models."""
    port = free_port()
    models = [str(bundled_model()), str(folder)]
    command = [sys.executable, "-m", "demo", *models, "--port", str(port), "--device", "cpu", "--rate", "0"]
    with serving(command, port, cwd=ROOT) as (place, _):
        yield place


@pytest.fixture(scope="session")
def client(address):
    """A client of the page's API."""
    from gradio_client import Client

    return Client(address, verbose=False)


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, or whatever is called so."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    path = chromium_path()
    if path is None:
        pytest.skip("the browser tests need chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        chromium = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", *camera]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A page of its own for each test; the test fails when it raises, or asks another host for anything."""
    # The camera is the one that Chromium draws itself: a green picture with a moving pie.
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["camera", "clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.append(request.url) if not _own(request.url) else None)
    page.set_default_timeout(40_000)
    yield page
    context.close()
    assert troubles == []


def _own(url: str) -> bool:
    return url.startswith(("data:", "blob:", "http://127.0.0.1", "http://localhost"))
