"""Who may ask, and how often."""

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from fastapi import Request

from nextgpt_jax.serving.http.errors import ApiError

_MAX_CALLERS = 10_000  # whose rates are remembered


class Keys:
    """The API keys."""

    def __init__(self, keys: Iterable[str]):
        self._digests = [_digest(key) for key in keys]

    def caller(self, request: Request) -> str:
        """A name for the key of a request, or for its address if there are no keys.

        The time that it takes does not depend on how much of a key is right.

        Raises:
          ApiError: the key is missing or wrong.
        """
        if not self._digests:
            return request.client.host if request.client else ""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        right = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(right):
            message = "give a key of this server: Authorization: Bearer KEY"
            raise ApiError(message, 401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return given.hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Rates:
    """At most `rate` requests per minute and caller; a caller who was quiet may spend those of a minute at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self._rate, self._burst, self._clock = rate, max(1.0, rate), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (requests, at that time)

    def spend(self, caller: str) -> None:
        """Counts a request.

        Raises:
          ApiError: the caller has none left; it says when.
        """
        if not self._rate:
            return
        now = self._clock()
        left, then = self._left.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate / 60)
        self._left[caller] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > _MAX_CALLERS:
            self._left.popitem(last=False)
        if left < 1:
            seconds = math.ceil((1 - left) * 60 / self._rate)
            message = f"{self._rate:g} requests per minute are allowed: try again in {seconds} s"
            raise ApiError(message, 429, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})
