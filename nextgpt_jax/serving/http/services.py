"""What the handlers of a server share."""

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import Request

from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.serving.batcher import Batcher
from nextgpt_jax.serving.http.access import Keys, Rates
from nextgpt_jax.serving.http.answers import Answers
from nextgpt_jax.serving.http.bodies import Form
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.inputs import Inputs
from nextgpt_jax.serving.http.metrics import Metrics
from nextgpt_jax.serving.http.settings import Settings
from nextgpt_jax.serving.http.store import FileStore

_T = TypeVar("_T")


class Services:
    """Made once for an app; `of` finds it in a handler.

    Attributes:
      ready: requests are taken; False once the server shuts down.
    """

    def __init__(self, batcher: Batcher, settings: Settings):
        self.batcher, self.settings = batcher, settings
        self.keys, self.rates = Keys(settings.keys), Rates(settings.rate)
        self.files = FileStore(settings.file_seconds, settings.max_stored)
        self.metrics = Metrics(batcher)
        self.pool = concurrent.futures.ThreadPoolExecutor(settings.threads, "media")
        self.ready = True

    @property
    def engine(self) -> Engine:
        return self.batcher.engine

    async def run(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Calls a function in a thread: whatever handles bytes of media."""
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.pool, call)

    def answers(self) -> Answers:
        """For the requests of one HTTP request."""
        return Answers(self.batcher, self.pool, self.metrics)

    def base_url(self, request: Request) -> str:
        """The server's own address, without a slash at the end."""
        return (self.settings.public_url or str(request.base_url)).rstrip("/")

    def inputs(self, request: Request, form: Form | None = None) -> Inputs:
        """The input media of a request; a context manager."""
        uploads = {name: files[0] for name, files in form.files.items()} if form else {}
        return Inputs(self.files, self.settings, self.base_url(request), uploads)

    def check_model(self, name: str | None) -> None:
        """Raises ApiError unless this is the model's name, or none."""
        if name is not None and name != self.settings.name:
            message = f"there is no model {name!r}: this server has {self.settings.name!r}"
            raise ApiError(message, 404, param="model", code="model_not_found")

    def number(self, n: int | None) -> int:
        """The answers that a request asks for. Raises ApiError for too many."""
        if (n or 1) > self.settings.max_n:
            raise ApiError(f"n is {n}: at most {self.settings.max_n}", param="n", code="invalid_value")
        return n or 1

    def within_limits(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options whose default length of an answer is no longer than the server allows."""
        default, most = self.engine.defaults.max_new_tokens, self.batcher.config.max_new_tokens
        limit = min(default, most) if most else default
        return {**options, "max_new_tokens": options.get("max_new_tokens") or limit}

    def size(self, modality: str) -> str:
        """WIDTHxHEIGHT of generated images or videos."""
        options = getattr(self.engine.defaults, modality)
        return f"{options.width}x{options.height}"

    def check_output(self, modality: str) -> None:
        """Raises ApiError unless the model generates this modality."""
        if modality not in self.engine.config.output_modalities:
            raise ApiError(f"this model makes no {modality}", 404, code="not_supported")

    def close(self) -> None:
        """Finishes what runs."""
        self.batcher.close(drain=True)
        self.pool.shutdown()
        self.files.close()


def of(request: Request) -> Services:
    """The services of a request's app."""
    return request.app.state.services


async def authorize(request: Request) -> str:
    """The caller of a request, whose key and rate are right. Raises ApiError."""
    services = of(request)
    caller = services.keys.caller(request)
    if request.method == "POST":
        services.rates.spend(caller)
        if not services.ready:
            raise ApiError("the server is shutting down", 503, code="unavailable", headers={"Retry-After": "5"})
    request.state.caller = caller
    return caller
