"""The app: routes, limits and errors together."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import nextgpt_jax
from nextgpt_jax.serving.batcher import Batcher
from nextgpt_jax.serving.http import audio, chat, documents, embeddings, errors, images, status, videos
from nextgpt_jax.serving.http.answers import ClientGone
from nextgpt_jax.serving.http.body_limit import BodyLimit
from nextgpt_jax.serving.http.embedder import Embedder
from nextgpt_jax.serving.http.services import Services, authorize
from nextgpt_jax.serving.http.settings import Settings
from nextgpt_jax.serving.http.video_jobs import VideoJobs


def make_app(batcher: Batcher, settings: Settings | None = None, encoder: str = "") -> FastAPI:
    """The app of a server. It closes the batcher at its end.

    Args:
      encoder: config.model.encoder, for embeddings of text; "": there are none.
    """
    services = Services(batcher, settings or Settings())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(services.files.keep_sweeping())
        yield
        services.ready = False
        sweeping.cancel()
        await app.state.video_jobs.close()
        await asyncio.to_thread(services.close)

    app = FastAPI(
        title="nextgpt-jax",
        version=nextgpt_jax.__version__,
        description="Text, images, videos and sound in and out, by OpenAI's API.",
        lifespan=lifespan,
        docs_url=None,  # its page would load code from elsewhere
        redoc_url=None,
    )
    app.state.services = services
    app.state.video_jobs = VideoJobs(services)
    app.state.embedder = Embedder(batcher, encoder)
    app.openapi = lambda: documents.document(app)  # type: ignore[method-assign]
    errors.install(app)
    app.add_exception_handler(ClientGone, _gone)
    for router in (chat.router, images.router, audio.router, videos.router, embeddings.router, status.models):
        app.include_router(router, prefix="/v1", dependencies=[Depends(authorize)])
    app.include_router(status.public)
    app.add_middleware(BodyLimit, max_bytes=services.settings.max_upload, seconds=services.settings.upload_seconds)
    app.add_middleware(_Timed, services=services)
    return app


async def _gone(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({}, 499)  # as nginx logs it; nobody reads it


class _Timed:
    """ASGI middleware that counts responses."""

    def __init__(self, app: ASGIApp, services: Services):
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # never a path that a client makes up
            self._services.metrics.http(route, status, time.monotonic() - start)
