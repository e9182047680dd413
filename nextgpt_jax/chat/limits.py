"""Keeping below the requests and tokens per minute that a service allows."""

import threading
import time
from collections.abc import Callable

_MINUTE = 60.0  # seconds


class RateLimiter:
    """Spaces requests of several threads evenly, so that no minute has more of them, or of their tokens, than allowed.

    Attributes:
      requests_per_minute, tokens_per_minute: 0: any number.
    """

    def __init__(
        self,
        requests_per_minute: float = 0,
        tokens_per_minute: float = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ):
        """
        Args:
          clock: seconds.
          sleep: waits for a number of seconds, or returns early to end the wait.
        """
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._next_request = self._next_token = self._paused_until = clock()

    def acquire(self, tokens: int) -> None:
        """Waits until a request of about `tokens` tokens may be sent."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next_request, self._next_token)
            if self.requests_per_minute:
                self._next_request = start + _MINUTE / self.requests_per_minute
            if self.tokens_per_minute:
                self._next_token = start + _MINUTE * tokens / self.tokens_per_minute
        while (wait := max(start, self._paused_until) - self._clock()) > 0:
            if self._sleep(wait):
                return

    def correct(self, tokens: int) -> None:
        """Accounts for tokens that a request had beyond those it was acquired with (negative: below)."""
        if self.tokens_per_minute:
            with self._lock:
                self._next_token += _MINUTE * tokens / self.tokens_per_minute

    def pause(self, seconds: float) -> None:
        """Lets nobody pass for a while."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)
