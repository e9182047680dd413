"""GET /v1/models, /files, /healthz, /readyz and /metrics."""

import time

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.services import of

models, public = APIRouter(), APIRouter()
_STARTED = int(time.time())


def _model(request: Request) -> dict[str, object]:
    services = of(request)
    config = services.engine.config
    modalities = {
        "input_modalities": ["text", *config.input_modalities],
        "output_modalities": ["text", *config.output_modalities],
    }
    return {
        "id": services.settings.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "nextgpt-jax",
    } | modalities


@models.get("/models")
async def list_models(request: Request) -> JSONResponse:
    """The one model of this server."""
    return JSONResponse({"object": "list", "data": [_model(request)]})


@models.get("/models/{name:path}")
async def retrieve_model(request: Request, name: str) -> JSONResponse:
    """What the model reads and makes."""
    of(request).check_model(name)
    return JSONResponse(_model(request))


@public.get("/files/{name}")
async def file(request: Request, name: str) -> Response:
    """A generated medium. Its name is the secret: no key is needed, so that pages can show it."""
    if (found := of(request).files.get(name)) is None:
        raise ApiError("there is no such file, or no longer", 404, code="not_found")
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return FileResponse(found.path, headers=headers)


@public.get("/healthz")
async def health(request: Request) -> Response:
    """Whether the process works."""
    return PlainTextResponse("ok") if of(request).batcher.alive else PlainTextResponse("the batcher died", 503)


@public.get("/readyz")
async def ready(request: Request) -> Response:
    """Whether requests are taken."""
    return PlainTextResponse("ready") if of(request).ready else PlainTextResponse("shutting down", 503)


@public.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    text = await of(request).run(of(request).metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
