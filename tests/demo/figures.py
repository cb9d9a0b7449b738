"""The docs' figures of the demo, and its picture: python -m tests.demo.figures [--app] [--static] [--picture FILE]

--app: seconds from the command to the first faces in a browser, seconds to them in a browser that comes later,
milliseconds from a slider's move to the new face, seconds of a repainting. --static: of the page without a server, the
bytes and seconds to the first face of each model on a line of 20 Mbit/s, and frames a second while a face is dragged,
without WebGPU. --picture: that page. All with the shipped models, in the system's Chromium, on this machine. `ORT_WEB`
names a folder with onnxruntime-web.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from demo.space import main as assemble
from tests.demo.conftest import ROOT, chromium_path, free_port, serving, serving_files
from vae_runtime.hub import bundled_model

STARTS, MOVES, DRAG = 3, 60, 5000
LINE = 20e6 / 8

# Moves a slider and waits, frame by frame, until the picture is another one: milliseconds of each move.
LIVE = """async ([moves]) => {
  const slider = document.querySelector('#edit-sliders input[type=range]'), times = [];
  const face = () => document.querySelector('#edit-out img').src;
  for (let move = 0; move < moves; move++) {
    const before = face(), start = performance.now();
    slider.value = 0.1 * (1 + move % 29) * (move % 2 ? 1 : -1);
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    while (face() === before && performance.now() - start < 5000) await new Promise(requestAnimationFrame);
    times.push(performance.now() - start);
    await new Promise((done) => setTimeout(done, 100));
  }
  return times;
}"""
# Milliseconds from the address to the first face, and the bytes that had come by then.
FIRST = """() => {
  const first = Number(document.documentElement.dataset.first);
  const come = performance.getEntries().filter((entry) => entry.transferSize && entry.responseEnd <= first);
  return [first, come.reduce((sum, entry) => sum + entry.transferSize, 0)];
}"""
# Drags across the face for so many milliseconds, a move a frame: pictures drawn, and the time.
DRAGGED = """async ([milliseconds]) => {
  const face = document.querySelector('#face'), box = face.getBoundingClientRect(), start = performance.now();
  const count = () => Number(document.documentElement.dataset.frames), first = count();
  const at = (share) => ({clientX: box.left + share * box.width, clientY: box.top + 0.5 * box.height, pointerId: 1});
  face.hasPointerCapture = () => true;
  face.setPointerCapture = () => {};
  face.dispatchEvent(new PointerEvent('pointerdown', at(0)));
  while (performance.now() - start < milliseconds) {
    const share = (Math.sin((performance.now() - start) / 300) + 1) / 2;
    face.dispatchEvent(new PointerEvent('pointermove', at(share)));
    await new Promise(requestAnimationFrame);
  }
  return [count() - first, (performance.now() - start) / 1000];
}"""


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """A page at an address."""
    page = browser.new_page(**options)
    page.set_default_timeout(60_000)
    page.goto(address)
    yield page
    page.close()


def measure_app(browser: Browser) -> None:
    """Cold starts, then a slider."""
    starts = []
    for turn in range(STARTS):
        port = free_port()
        command = [sys.executable, "-m", "demo", "--port", str(port), "--device", "cpu", "--rate", "0"]
        begun = time.monotonic()
        with serving(command, port, cwd=ROOT) as (address, _):
            with opened(browser, address) as page:
                page.locator("#sample-faces img").first.wait_for()
                starts.append(time.monotonic() - begun)
            if turn == STARTS - 1:
                with opened(browser, address + "?tab=edit") as page:
                    page.locator("#edit-out img").wait_for()
                    page.evaluate(LIVE, [5])
                    times = page.evaluate(LIVE, [MOVES])
                with opened(browser, address) as page:
                    begun = time.monotonic()
                    page.reload()
                    page.locator("#sample-faces img").first.wait_for()
                    print(f"the first faces in a browser that knows the page: {time.monotonic() - begun:.2f} s")
                with opened(browser, address + "?tab=inpaint") as page:
                    page.locator("#inpaint-paint img").first.wait_for()
                    page.locator("#inpaint-paint .strokes").focus()
                    page.keyboard.press("Space")
                    begun = time.monotonic()
                    page.locator("#inpaint-run").click()
                    page.locator("#inpaint-out img").wait_for()
                    print(f"a repainting: {time.monotonic() - begun:.2f} s")
    print("from the command to the first faces:", ", ".join(f"{seconds:.1f} s" for seconds in starts))
    low, high = np.percentile(times, [50, 95])
    print(f"a slider's answer, {MOVES} moves: p50 {low:.0f} ms, p95 {high:.0f} ms, most {max(times):.0f} ms")


def measure_load(browser: Browser, address: str, model: str) -> None:
    """The first face of a model on a line of 20 Mbit/s and 20 ms, with nothing cached."""
    context = browser.new_context(service_workers="block")
    page = context.new_page()
    line = context.new_cdp_session(page)
    line.send("Network.enable")
    speed = {"offline": False, "latency": 20, "downloadThroughput": LINE, "uploadThroughput": LINE}
    line.send("Network.emulateNetworkConditions", speed)
    begun = time.monotonic()
    page.goto(f"{address}#model={model}", wait_until="commit")
    page.locator("#poster").wait_for()
    poster = time.monotonic() - begun
    page.locator("html[data-first]").wait_for(timeout=60_000)
    seconds, size = (figure / 1e3 for figure in page.evaluate(FIRST))
    size /= 1e3
    print(f"{model}: poster after {poster:.2f} s, first face after {seconds:.2f} s and {size:.1f} MB")
    context.close()


def measure_static(browser: Browser, address: str) -> None:
    """The frame rate while the face is dragged."""
    with opened(browser, address + "?wasm") as page:
        page.locator("html[data-ready]").wait_for()
        frames, seconds = page.evaluate(DRAGGED, [DRAG])
        drawn = page.locator("html").get_attribute("data-milliseconds")
    print(f"dragging without a server: {frames / seconds:.0f} frames a second, {drawn} ms for the last")


def photograph(browser: Browser, address: str, file: Path) -> None:
    """The page without a server, 1100 pixels wide, the face a little off the middle."""
    with opened(browser, address, viewport={"width": 1100, "height": 800}) as page:
        page.locator("html[data-ready]").wait_for()
        for _ in range(3):
            page.locator("#face").press("ArrowRight")
        page.wait_for_timeout(1000)
        page.screenshot(path=file, full_page=True)
    print(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--app", action="store_true")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    options = parser.parse_args()
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as place:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=chromium_path(), args=arguments)
        if options.app:
            measure_app(browser)
        if options.static or options.picture:
            site, engine = Path(place, "site"), os.environ.get("ORT_WEB")
            assemble(["--static", "--out", str(site), *(["--engine", engine] if engine else [])])
            with serving_files(site) as address:
                if options.static:
                    for model in (bundled_model().name, "avatars-64"):
                        measure_load(browser, address, model)
                    measure_static(browser, address)
                if options.picture:
                    photograph(browser, address, options.picture)
        browser.close()


if __name__ == "__main__":
    main()
