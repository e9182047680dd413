"""Server-sent events."""

import asyncio
import json
import math
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
        connection = _Connection(send, self._send_seconds)
        work = self._send(connection), connection.ping(self._ping_seconds), _gone(receive)
        tasks = [asyncio.create_task(one) for one in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()  # type: ignore[attr-defined]  # a generator
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) and not isinstance(error, TimeoutError):
                raise error

    async def _send(self, connection: "_Connection") -> None:
        await connection.begin(self.status_code, self.raw_headers)
        try:
            async for event in self._events:
                await connection.put(_line(event))
            last = _DONE
        except (TimeoutError, OSError):  # of `put`
            raise
        except Exception as error:
            last = _line(api_error(error).body())
        await connection.put(last)
        await connection.put(b"", False)


class _Connection:
    """Where the body of a response goes, a part at a time."""

    def __init__(self, send: Send, seconds: float):
        """`seconds`: that a part may take."""
        self._send, self._seconds = send, seconds
        self._clock = asyncio.get_running_loop().time
        self._turn, self._last = asyncio.Lock(), math.inf  # when a part was last sent; not before or after the body

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self._last = self._clock()

    async def put(self, body: bytes, more: bool = True) -> None:
        """Raises TimeoutError if the client takes nothing."""
        async with self._turn:
            await self._put(body, more)

    async def _put(self, body: bytes, more: bool = True) -> None:
        async with asyncio.timeout(self._seconds):
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._last = self._clock() if more else math.inf

    async def ping(self, seconds: float) -> None:
        """Sends a comment after each `seconds` in which nothing was sent. Raises as `put`."""
        while True:
            async with self._turn:
                if self._clock() - self._last >= seconds:
                    await self._put(_PING)
            await asyncio.sleep(min(seconds, self._last + seconds - self._clock()))


def _line(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
