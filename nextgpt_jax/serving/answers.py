"""What a caller of the batcher holds: a request's answer while it is being made, and why there is none."""

import queue
import threading
from collections.abc import Callable, Iterator

from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.types import Response, StreamEvent

Event = StreamEvent | Exception  # of an answer; a complete response or an exception is the last one


class QueueFull(UserError):
    """As many requests wait as may: try again later."""


class TimedOut(UserError):
    """The answer took longer than its time limit."""


class Cancelled(UserError):
    """The caller gave the request up, or the batcher was closed."""


class Answer:
    """The answer to a request, piece by piece. Made by `Batcher.submit`.

    Attributes:
      prompt_tokens: tokens of the prompt, its media included.
    """

    def __init__(self, prompt_tokens: int, cancel: Callable[[], None], on_event: Callable[[Event], None] | None = None):
        """
        Args:
          on_event: takes the events in place of `events`, in the batcher's thread: it must return at once.
        """
        self.prompt_tokens = prompt_tokens
        self._cancel = cancel
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._put = on_event or self._events.put
        self._ended = threading.Event()

    def cancel(self) -> None:
        """Gives the request up; its row and its place in the queue are free at once. Does nothing after the end."""
        self._cancel()

    @property
    def ended(self) -> bool:
        """Whether the last event has been delivered."""
        return self._ended.is_set()

    def events(self) -> Iterator[StreamEvent]:
        """The parts of the answer as they are finished; the complete response is the last.

        Raises:
          TimedOut, Cancelled: there is no complete response.
          Exception: what failed; other answers are not affected.
        """
        while True:
            event = self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if event.response:
                return

    def result(self) -> Response:
        """Waits for the complete response. Raises as `events`."""
        *_, last = self.events()
        assert last.response
        return last.response

    def deliver(self, event: Event) -> None:
        """Called by the batcher. What comes after the end is dropped."""
        if not self._ended.is_set():
            if isinstance(event, Exception) or event.response:
                self._ended.set()
            self._put(event)
