"""What axe-core finds on every tab of the app and of the page without a server, on a large and a small screen."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.demo.test_browser import TITLES, on_tab
from tests.demo.test_static import open_panel, ready, site, static  # noqa: F401  # fixtures

VERSION = "4.14.1"
DIGEST = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
PANELS = ("edit", "own", "names", "evolve", "repaint")

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """axe.min.js: the file in $AXE_CORE, or from npm, checked by digest."""
    if "AXE_CORE" in os.environ:
        return Path(os.environ["AXE_CORE"]).read_text(encoding="utf-8")
    place = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs axe-core: install npm, or name its axe.min.js in AXE_CORE")
    done = subprocess.run([npm, "pack", f"axe-core@{VERSION}", "--silent"], cwd=place, capture_output=True)
    archives = list(place.glob("*.tgz"))
    if done.returncode or not archives:
        pytest.skip("axe-core cannot be fetched from npm")
    assert base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode() == DIGEST
    with tarfile.open(archives[0]) as package:
        member = package.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def findings(page, axe: str) -> list[str]:
    """Serious and critical violations: the rule, and what breaks it."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {node['target']} {node.get('failureSummary', '')[:200]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_tab_of_the_app(page, address, axe, width, scheme):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    found = {}
    for tab in TITLES:
        page.goto(f"{address}?tab={tab}")
        on_tab(page, tab)
        page.locator("html[data-restored]").wait_for(state="attached")
        found[tab] = findings(page, axe)
    assert {tab: rules for tab, rules in found.items() if rules} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_panel_of_the_static_page(page, static, axe, width, scheme):  # noqa: F811
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    ready(page, static)
    found = {}
    for panel in PANELS:
        open_panel(page, panel)
        found[panel] = findings(page, axe)
    assert {panel: rules for panel, rules in found.items() if rules} == {}
