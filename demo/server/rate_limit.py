"""So many requests from one address, and no more: what keeps one visitor of a public page from taking it all."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

BURST = 20.0
"""Seconds of the rate that an address which was quiet may use at once."""
MOST = 4096
"""Addresses that are remembered; of more, the one that was quiet longest is forgotten."""
SENTENCE = "Too many requests from your address; wait a few seconds, then go on."

# A Space's proxy stands in a private network. uvicorn believes X-Forwarded-For of these addresses alone, and reads it
# from the right, so that what a visitor writes into it himself counts for nothing.
PRIVATE_PROXIES = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,::1,fc00::/7"


class Buckets:
    """A token bucket for each address: `rate` requests a second for long, `BURST` seconds of them at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.size, self.clock = rate, max(1.0, rate * BURST), clock
        self._left: dict[str, tuple[float, float]] = {}  # tokens and the moment they were counted; the latest last

    def take(self, address: str) -> bool:
        """Whether a request from this address may pass now."""
        name, now = network(address), self.clock()
        tokens, then = self._left.pop(name, (self.size, now))
        tokens = min(self.size, tokens + (now - then) * self.rate)
        passes = tokens >= 1
        self._left[name] = (tokens - passes, now)
        if len(self._left) > MOST:
            del self._left[next(iter(self._left))]
        return passes

    def __len__(self) -> int:
        return len(self._left)


def network(address: str) -> str:
    """Who an address stands for: itself, or for IPv6 its /64, which is what one subscriber has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class RateLimit:
    """ASGI middleware: a POST (an upload, a call) beyond the rate of its address gets 429 and a sentence."""

    def __init__(self, app: ASGIApp, rate: float) -> None:
        self.app, self.buckets = app, Buckets(rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it before its body is read."""
        if scope["type"] == "http" and scope["method"] == "POST":
            host, _ = scope.get("client") or ("", 0)
            if not self.buckets.take(host):
                wait = {"Retry-After": str(max(1, math.ceil(1 / self.buckets.rate)))}
                refused = JSONResponse({"detail": SENTENCE, "error": SENTENCE}, 429, wait)  # Gradio reads either
                return await refused(scope, receive, send)
        return await self.app(scope, receive, send)
