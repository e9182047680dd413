"""Server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nextgpt_jax.serving.http.errors import api_error

_PING = b": still there\n\n"  # a comment, which clients skip
_DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends events as they come, and `[DONE]` after the last.

    Something that breaks becomes an event with an `error`, the last one, without `[DONE]`. When the client goes, or
    takes nothing for `send_seconds`, the generator is closed.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any]], *, send_seconds: float, ping_seconds: float):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._send_seconds, self._ping_seconds = events, send_seconds, ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._events.aclose()  # type: ignore[attr-defined]  # a generator
        if not sending.cancelled() and (error := sending.exception()) and not isinstance(error, TimeoutError):
            raise error

    async def _send(self, send: Send) -> None:
        async def put(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self._send_seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in _with_pings(self._events, self._ping_seconds):
                await put(_PING if event is None else _line(event))
            last = _DONE
        except (TimeoutError, OSError):  # of `put`
            raise
        except Exception as error:
            last = _line(api_error(error).body())
        await put(last)
        await put(b"", False)


async def _with_pings(events: AsyncIterator[dict[str, Any]], seconds: float) -> AsyncIterator[dict[str, Any] | None]:
    """The events, and None after each `seconds` without any."""
    upcoming = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([upcoming], timeout=seconds)
            if not done:
                yield None
                continue
            task, upcoming = upcoming, None
            try:
                event = task.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if upcoming:
            upcoming.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await upcoming


def _line(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
