"""Limits on the bodies of requests, before anything reads them."""

import asyncio
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextgpt_jax.files import format_size
from nextgpt_jax.serving.http.errors import ApiError

_DRAIN_SECONDS = 10.0


class BodyLimit:
    """ASGI middleware that refuses bodies that are too long or too slow.

    A body that an error leaves unread is read and dropped within limits before the response ends: a client that is
    still sending would otherwise see a broken connection instead of the error.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float):
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._max_bytes, self._seconds)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        body.done = not length.strip(b"0") and b"transfer-encoding" not in headers
        started, failed = False, False

        async def limited_send(message: Message) -> None:
            nonlocal started, failed
            if message["type"] == "http.response.start":
                started, failed = True, message["status"] >= 400
            elif failed and not body.done and not message.get("more_body"):
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            if length.isdigit() and int(length) > self._max_bytes:
                raise _too_long(self._max_bytes)
            await self._app(scope, body.receive, limited_send)
        except ApiError as error:  # raised by receive, outside of a handler, or above
            if started:
                raise
            await error.response()(scope, receive, limited_send)


class _Body:
    def __init__(self, receive: Receive, max_bytes: int, seconds: float):
        self._receive, self._max_bytes = receive, max_bytes
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._read = 0
        self.done = False

    async def receive(self) -> Any:
        if self.done:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            self.done = True  # what still comes is not waited for
            message = f"the body did not arrive within {self._seconds:g} s"
            raise ApiError(message, 408, code="timeout", headers={"Connection": "close"}) from None
        self._read += len(message.get("body", b""))
        self.done = not message.get("more_body")
        if self._read > self._max_bytes:
            raise _too_long(self._max_bytes)
        return message

    async def drain(self) -> None:
        """Reads what is left, for a while."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self.done and self._read < 8 * self._max_bytes + 2**28:
                    message = await self._receive()
                    self._read += len(message.get("body", b""))
                    self.done = not message.get("more_body")
        except TimeoutError:
            pass


def _too_long(limit: int) -> ApiError:
    return ApiError(f"the body is longer than {format_size(limit)}, which is the limit", 413, code="too_large")
