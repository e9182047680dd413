"""A client of chat endpoints that follow OpenAI's API: /chat/completions, as vLLM, llama.cpp, Ollama and the hosted
services have it."""

import contextlib
import dataclasses
import datetime
import email.utils
import json
import os
import random
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nextgpt_jax.chat.costs import NO_USAGE, Messages, Usage, estimate_tokens
from nextgpt_jax.chat.limits import RateLimiter
from nextgpt_jax.errors import UserError, printable

_RETRIED = {408, 409, 425, 429, *range(500, 600)}
_FOR_GOOD = {401, 402, 403, 404, 405}
FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds between attempts, doubled each time
_LONGEST_PAUSE = 900.0  # seconds that Retry-After may ask for
FORMATS = ("json_schema", "json_object", "none")


class Names(NamedTuple):
    """What messages call settings, and the remedies that they name."""

    url: str = "--endpoint"
    model: str = "--model"
    response_format: str = "--response_format"
    max_tokens: str = "--max_tokens"
    key: str = "--key_env names the variable that has it"
    request: str = "--response_format=none and --request change it"
    extra: str = "pip install 'nextgpt-jax[build]'"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
      url: of the API ("https://host/v1"), or of its chat completions.
      model: the name of the model.
      key: sent as a bearer token; empty: none.
      response_format: how JSON is asked for, one of FORMATS.
      max_tokens: of a reply.
      extra: further fields of the request's body; null removes one.
      timeout: seconds without any answer.
      retries: of a request that fails for reasons that may pass.
      requests_per_minute, tokens_per_minute: 0: any number.
      concurrency: requests at the same time.
      names: of the settings in messages.
    """

    url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    response_format: str = "json_object"
    max_tokens: int = 1500
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timeout: float = 120.0
    retries: int = 8
    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    concurrency: int = 8
    names: Names = Names()

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            raise UserError(f"{self.names.url}: give the URL of the API, such as https://host/v1") from None
        if not good or parts.username or parts.query or not self.url.isprintable() or not self.url.isascii():
            raise UserError(f"{self.names.url}: give the URL of the API, such as https://host/v1, not {self.place!r}")
        if not self.model:
            raise UserError(f"{self.names.model} is missing: the name that the endpoint has for the model")
        if self.response_format not in FORMATS:
            raise UserError(
                f"{self.names.response_format}: {self.response_format!r} is not one of {', '.join(FORMATS)}"
            )
        for name, low in {"max_tokens": 1, "concurrency": 1, "retries": 0, "requests_per_minute": 0,
                          "tokens_per_minute": 0}.items():  # fmt: skip
            if not getattr(self, name) >= low:
                raise UserError(f"--{name}={getattr(self, name)}: give {low} or more")
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise UserError("the endpoint's key has characters that no key has: blanks or a line end around it?")

    @property
    def place(self) -> str:
        """The URL as messages have it, without what may be secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else self.url

    @property
    def completions(self) -> str:
        """The URL of chat completions."""
        url = self.url.rstrip("/")
        return url if url.endswith("/chat/completions") else f"{url}/chat/completions"


class Rejected(Exception):
    """A reply that cannot be used, and why; `usage` are its tokens, where they are known."""

    def __init__(self, reason: str, usage: Usage = NO_USAGE):
        super().__init__(reason)
        self.usage = usage


class Completion(NamedTuple):
    """A reply's text, and the tokens that it took."""

    text: str
    usage: Usage


class ChatClient:
    """Asks an endpoint, from several threads. Used as a context manager.

    Attributes:
      stopped: set it to end all waiting: every request that has no answer yet raises `Stopped`.
    """

    def __init__(self, endpoint: Endpoint, seed: int = 0, limiter: RateLimiter | None = None):
        """
        Args:
          seed: of the random part of waiting times.
          limiter: default: as the endpoint's fields say.

        Raises:
          UserError: the HTTP library is not installed.
        """
        try:
            import httpx2
        except ImportError:
            raise UserError(f"asking an endpoint needs httpx2: {endpoint.names.extra}") from None
        self._http, self._endpoint = httpx2, endpoint
        self.stopped = threading.Event()
        self._limiter = limiter or RateLimiter(
            endpoint.requests_per_minute, endpoint.tokens_per_minute, sleep=self.stopped.wait
        )
        self._random, self._answered = random.Random(seed), False
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        connections = httpx2.Limits(max_connections=endpoint.concurrency)
        self._client = httpx2.Client(headers=headers, timeout=endpoint.timeout, limits=connections)

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._client.close()

    def complete(self, messages: Messages, schema: Mapping[str, Any], expected: int) -> Completion:
        """The endpoint's reply.

        Args:
          schema: of the JSON that is asked for.
          expected: tokens of the reply, about.

        Raises:
          Rejected: the endpoint refuses this request, or its reply has no end.
          UserError: it refuses all requests, or fails again and again.
          Stopped: `stopped` is set.
        """
        body = self._body(messages, schema)
        tokens, failures = estimate_tokens(messages) + expected, 0
        while True:
            self._limiter.acquire(tokens)
            if self.stopped.is_set():
                raise Stopped
            try:
                completion = self._once(body, messages)
            except _Failure as failure:
                failures += 1
                there = self._answered or failure.answered  # else: most likely the URL is wrong
                if failures > (self._endpoint.retries if there else min(2, self._endpoint.retries)):
                    raise UserError(
                        f"{self._endpoint.place} failed {failures} times: {failure}; what was answered is kept: run "
                        "the same command again to go on"
                    ) from None
                self._limiter.pause(min(failure.wait, _LONGEST_PAUSE))  # what is asked of one holds for all
                wait = min(FIRST_WAIT * 2 ** (failures - 1), _LONGEST_WAIT)
                self.stopped.wait(wait * self._random.uniform(0.5, 1.0))
                continue
            self._answered = True
            self._limiter.correct(sum(completion.usage) - tokens)
            return completion

    def _body(self, messages: Messages, schema: Mapping[str, Any]) -> dict[str, Any]:
        body = {"model": self._endpoint.model, "messages": list(messages), "max_tokens": self._endpoint.max_tokens}
        if self._endpoint.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif self._endpoint.response_format == "json_schema":
            named = {"name": "reply", "strict": True, "schema": _without_lengths(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        body |= self._endpoint.extra
        return {name: value for name, value in body.items() if value is not None}

    def _once(self, body: dict[str, Any], messages: Messages) -> Completion:
        try:
            response = self._client.post(self._endpoint.completions, json=body)
        except self._http.InvalidURL as error:
            raise UserError(f"{self._endpoint.names.url}: {self._safe(str(error))}") from None
        except self._http.ConnectError as error:
            raise _Failure(f"no connection ({self._safe(str(error))})", answered=False) from None
        except self._http.HTTPError as error:  # time-outs, connections that break, answers that are no HTTP
            raise _Failure(self._safe(str(error)) or type(error).__name__) from None
        status = response.status_code
        if status == 200:
            return self._completion(response, messages)
        reason = f"status {status}{self._reason(response)}"
        if status in _RETRIED and "insufficient_quota" not in response.text:
            raise _Failure(reason, _retry_after(response.headers))
        if status in (401, 403):
            raise UserError(f"{self._endpoint.place} refuses the key: {reason}; {self._endpoint.names.key}")
        if status in _FOR_GOOD or status in _RETRIED or 300 <= status < 400:
            raise UserError(f"{self._endpoint.completions} does not answer: {reason}")
        if not self._answered:  # most likely every request is refused
            raise UserError(f"{self._endpoint.place} refuses the request: {reason}; {self._endpoint.names.request}")
        raise Rejected(f"refused by the endpoint (status {status})")

    def _completion(self, response: Any, messages: Messages) -> Completion:
        try:
            answer = json.loads(response.content)
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            raise _Failure("an answer that is no chat completion") from None
        usage = self._usage(answer.get("usage"), messages, text or "")
        if choice.get("finish_reason") == "length":
            raise Rejected(f"cut off at {self._endpoint.names.max_tokens}", usage)
        if not text:
            raise Rejected("empty", usage)
        return Completion(text, usage)

    @staticmethod
    def _usage(given: Any, messages: Messages, text: str) -> Usage:
        with contextlib.suppress(TypeError, KeyError, ValueError):
            return Usage(int(given["prompt_tokens"]), int(given["completion_tokens"]))
        return Usage(estimate_tokens(messages), estimate_tokens([{"content": text}]))

    def _reason(self, response: Any) -> str:
        try:
            error = json.loads(response.content)
            error = error.get("error", error)
            message = error if isinstance(error, str) else error["message"]
            return f": {self._safe(message)}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return ""

    def _safe(self, message: str) -> str:
        """A short message without the key, which some services repeat."""
        key = self._endpoint.key
        return " ".join(printable(message.replace(key, "***") if key else message).split())[:200]


class Stopped(Exception):
    """The client's `stopped` was set."""


class _Failure(Exception):
    """A request that may succeed later; `wait` is what the endpoint asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0, answered: bool = True):
        super().__init__(reason)
        self.wait, self.answered = wait, answered


def _without_lengths(schema: Any) -> Any:
    """A schema without the limits of lengths, which not all services take."""
    if not isinstance(schema, Mapping):
        return schema
    return {name: {key: _without_lengths(value) for key, value in inner.items()} if name == "properties"
            else _without_lengths(inner) for name, inner in schema.items()
            if name not in ("minLength", "maxLength", "minItems", "maxItems")}  # fmt: skip


def _retry_after(headers: Mapping[str, str]) -> float:
    value = headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return seconds if 0 <= seconds < float("inf") else 0.0
    with contextlib.suppress(ValueError, TypeError, IndexError):
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
    return 0.0


def key_from(variable: str) -> str:
    """The key in an environment variable; empty: it is not set, as for servers of one's own."""
    return os.environ.get(variable, "") if variable else ""
