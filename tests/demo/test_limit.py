"""The rate limit: how much one address may ask, who counts as one, and what the refused are told."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from demo.server.rate_limit import BURST, MOST, PRIVATE_PROXIES, SENTENCE, Buckets, RateLimit, network
from tests.demo.conftest import ROOT, free_port, serving
from tests.demo.test_app import call, leaks

RATE = 0.2
ALLOWED = int(RATE * BURST)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_then_the_rate_and_each_address_by_itself():
    clock = Clock()
    buckets = Buckets(2.0, clock)
    assert [buckets.take("1.2.3.4") for _ in range(42)] == [True] * 40 + [False] * 2
    assert buckets.take("1.2.3.5")
    clock.now += 1
    assert [buckets.take("1.2.3.4") for _ in range(3)] == [True, True, False]
    clock.now += 3600
    assert [buckets.take("1.2.3.4") for _ in range(41)] == [True] * 40 + [False]


def test_the_memory_is_bounded_and_the_quiet_are_forgotten_first():
    buckets = Buckets(0.05, Clock())
    assert buckets.take("busy")
    for number in range(3 * MOST):
        buckets.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        assert not buckets.take("busy")
    assert len(buckets) == MOST


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.5", False),
        ("1.2.3.4", "1.2.3.5", False),
        ("x" * 64 + "1", "x" * 64 + "2", True),
    ],
)
def test_who_counts_as_one(first, second, same):
    assert (network(first) == network(second)) == same


def outcomes(peer: str, forwarded: list[str], trusted: str) -> list[int]:
    """The status of a POST with each X-Forwarded-For, all over connections from `peer`, as uvicorn serves them."""
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    app = ProxyHeadersMiddleware(RateLimit(answer, 1 / BURST), trusted)  # one request each
    found: list[int] = []

    async def send(message):
        if message["type"] == "http.response.start":
            found.append(message["status"])

    async def run() -> None:
        for text in forwarded:
            headers = [(b"x-forwarded-for", text.encode())]
            await app({"type": "http", "method": "POST", "headers": headers, "client": (peer, 1)}, None, send)

    with ThreadPoolExecutor(1) as thread:  # the browser of other tests keeps a loop running in this one
        thread.submit(asyncio.run, run()).result()
    return found


def test_behind_the_proxy_of_a_space_visitors_are_told_apart_and_cannot_pretend():
    inside = "10.16.3.80"
    assert outcomes(inside, ["8.8.8.8", "9.9.9.9", "8.8.8.8"], PRIVATE_PROXIES) == [200, 200, 429]
    assert outcomes(inside, ["8.8.8.8, 10.0.0.7", "9.9.9.9, 10.0.0.7"], PRIVATE_PROXIES) == [200, 200]
    invented = [f"{number}.1.1.1, 9.9.9.9, 10.0.0.7" for number in range(3)]
    assert outcomes(inside, invented, PRIVATE_PROXIES) == [200, 429, 429]


def test_without_a_proxy_the_header_counts_for_nothing():
    assert outcomes("8.8.8.8", ["1.1.1.1", "2.2.2.2"], PRIVATE_PROXIES) == [200, 429]
    assert outcomes("10.16.3.80", ["1.1.1.1", "2.2.2.2"], "127.0.0.1") == [200, 429]


@pytest.fixture(scope="module")
def strict(folder):
    """The page with a limit that is soon reached: `ALLOWED` requests, then one in five seconds."""
    port = free_port()
    command = [sys.executable, "-m", "demo", str(folder), "--port", str(port), "--device", "cpu", "--rate", str(RATE)]
    with serving(command, port, cwd=ROOT, env=os.environ | {"FORWARDED_ALLOW_IPS": PRIVATE_PROXIES}) as (place, _):
        yield place


def post(address: str, path: str, forwarded: str) -> tuple[int, str, str]:
    """Status, text and Retry-After of one POST that says it comes from `forwarded`."""
    headers = {"Content-Type": "application/json", "X-Forwarded-For": forwarded}
    body = json.dumps({"data": ["7", "7"]}).encode()
    request = urllib.request.Request(address + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(), ""
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Retry-After"] or ""


@pytest.mark.parametrize("path", ["gradio_api/call/evolve", "gradio_api/upload", "gradio_api/queue/join", "nowhere"])
def test_every_door_is_counted(strict, path):
    visitor = f"203.0.113.{len(path)}"
    said = [post(strict, path, visitor) for _ in range(ALLOWED + 1)]
    assert 429 not in [status for status, *_ in said[:-1]]
    status, text, wait = said[-1]
    assert (status, json.loads(text)["detail"], wait) == (429, SENTENCE, "5")
    assert not leaks(text)
    assert post(strict, path, "203.0.113.200")[0] != 429


def test_the_page_says_the_sentence(strict, page):
    page.goto(strict)
    page.locator("#sample-faces img").first.wait_for()
    said = page.get_by_text(SENTENCE).first
    for _ in range(100):  # a click while an answer is awaited asks for nothing
        if said.is_visible():
            break
        page.locator("#new-faces").click()
        page.wait_for_timeout(100)
    said.wait_for()


def test_the_client_of_the_api_is_told(strict):
    for _ in range(ALLOWED + 1):
        said = call(strict, "evolve", ["tiny", "7"])
    assert said.startswith("429")
    assert SENTENCE in said
