"""Answers of the batcher in an event loop."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor

from fastapi import Request as HttpRequest

from nextgpt_jax.inference.types import Request, Response, StreamEvent
from nextgpt_jax.serving.answers import Answer, Event
from nextgpt_jax.serving.batcher import Batcher
from nextgpt_jax.serving.http.metrics import Metrics


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Answers:
    """The answers to the requests of one HTTP request. Those that have not ended at `close` are given up.

    Attributes:
      prompt_tokens: of one of them.
    """

    def __init__(self, batcher: Batcher, pool: Executor, metrics: Metrics):
        self._batcher, self._pool, self._metrics = batcher, pool, metrics
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._answers: list[Answer] = []
        self._closed = False
        self.prompt_tokens = 0

    async def submit(self, requests: Sequence[Request], *, stops: Sequence[str] = (), stream: bool = False) -> None:
        """Puts all requests into the batcher's queue, or none. Raises as `Batcher.submit`."""
        work = self._loop.run_in_executor(self._pool, functools.partial(self._submit, requests, stops, stream))
        try:
            await asyncio.shield(work)
        except BaseException:
            self.close()
            raise

    def _submit(self, requests: Sequence[Request], stops: Sequence[str], stream: bool) -> None:
        for i, request in enumerate(requests):
            answer = self._batcher.submit(request, stops=stops, stream=stream, on_event=self._taker(i))
            self._answers.append(answer)
            self.prompt_tokens = answer.prompt_tokens
            if self._closed:  # meanwhile
                answer.cancel()
                return

    def _taker(self, index: int) -> Callable[[Event], None]:
        timer = self._metrics.answer()

        def take(event: Event) -> None:  # in the batcher's thread
            timer(event)
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
            except RuntimeError:  # the loop is closed: nobody waits
                pass

        return take

    async def events(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        """The events of all answers, with the number of the answer. Raises the first fault."""
        left = len(self._answers)
        while left:
            index, event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            left -= event.response is not None
            yield index, event

    async def results(self, request: HttpRequest) -> list[Response]:
        """The complete responses, in the order of the requests.

        Raises:
          ClientGone: the client has closed the connection.
          Exception: what failed.
        """
        found: dict[int, Response] = {}

        async def collect() -> None:
            async for index, event in self.events():
                if event.response:
                    found[index] = event.response

        await until_gone(request, collect())
        return [found[i] for i in range(len(self._answers))]

    def close(self) -> None:
        self._closed = True
        for answer in self._answers:
            if not answer.ended:
                answer.cancel()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def until_gone(request: HttpRequest, work) -> None:
    """Awaits a coroutine as long as the client is there. The body of the request has been read.

    Raises:
      ClientGone: the client has closed the connection.
      Exception: what the coroutine raises.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientGone
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
