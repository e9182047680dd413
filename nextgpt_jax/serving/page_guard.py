"""What the chat page lets through to Gradio, which by itself fetches addresses, and in an app reads any file's path."""

import asyncio
import json
import pathlib
import re
from collections.abc import Coroutine, Iterator
from typing import Any

_REMOTE = re.compile(r"/(file=\s*https?:|proxy=)", re.IGNORECASE)
_MAX_BODY = 4_000_000  # bytes of a request other than an upload


class OnlyUploads:
    """ASGI middleware that refuses requests for files that were not uploaded to the page, or generated for it.

    It also ends the connections that open pages hold, on which Gradio's App says now and then that it is alive.
    """

    def __init__(self, app: Any, folder: pathlib.Path, closing: asyncio.Event):
        """
        Args:
          folder: all such files are in it.
          closing: ends those connections.
        """
        self._app, self._folder, self._closing = app, folder.resolve(), closing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if "/gradio_api/heartbeat/" in scope["path"]:
                return await self._until_closing(self._app(scope, receive, send))
            if _REMOTE.search(scope["path"]):
                return await _refuse(send, 403, "nothing is fetched from other servers")
            if scope["method"] == "POST" and not scope["path"].endswith("/gradio_api/upload"):
                if (body := await _read(receive)) is None:
                    return await _refuse(send, 413, f"the limit is {_MAX_BODY} bytes")
                if any(not self._is_ours(path) for path in _paths(body)):
                    return await _refuse(send, 403, "upload the file: others are not read")
                receive = _after(body, receive)
        await self._app(scope, receive, send)

    async def _until_closing(self, answering: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.ensure_future(answering), asyncio.ensure_future(self._closing.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _is_ours(self, path: Any) -> bool:
        try:
            return pathlib.Path(path).resolve().is_relative_to(self._folder)
        except (TypeError, ValueError, OSError):
            return False


async def _read(receive: Any) -> bytes | None:
    """The body of a request; None if it is too long."""
    body, more = b"", True
    while more and len(body) <= _MAX_BODY:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body if len(body) <= _MAX_BODY else None


def _paths(body: bytes) -> Iterator[Any]:
    """All values of "path" in a body of JSON."""
    try:
        stack = [json.loads(body)]
    except (ValueError, RecursionError):  # not what Gradio reads either
        return
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                yield value["path"]
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _after(body: bytes, receive: Any) -> Any:
    """A `receive` that gives a body that was read already, then what follows it."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Any, status: int, line: str) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": line}).encode()})
