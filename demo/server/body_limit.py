"""How much one request may send: Gradio bounds the files of a form, and nothing else."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 16 * 2**20
"""Bytes: some pictures as data URIs."""
SENTENCE = f"This is more than {MAX_BODY // 2**20} MB; send smaller pictures."


class _TooLarge(Exception):
    """A body that goes on beyond the limit."""


class BodyLimit:
    """ASGI middleware: a request with a body beyond `limit` bytes gets 413 and a sentence, and is not read on."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count what is read of it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refused = JSONResponse({"detail": SENTENCE, "error": SENTENCE}, 413)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.limit:
            return await refused(scope, receive, send)
        taken, started = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if not started:
                await refused(scope, receive, send)
        return None
