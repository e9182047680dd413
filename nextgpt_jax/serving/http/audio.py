"""POST /v1/audio/speech and /v1/audio/generations."""

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from nextgpt_jax.serving.http import outputs
from nextgpt_jax.serving.http.bodies import read_json
from nextgpt_jax.serving.http.documents import body_of
from nextgpt_jax.serving.http.generation import answer, prompt_requests
from nextgpt_jax.serving.http.schemas import Sounds, Speech
from nextgpt_jax.serving.http.services import of

router = APIRouter()


@router.post("/audio/speech", openapi_extra=body_of(Speech))
async def speech(request: Request) -> Response:
    """Makes the sound that `input` describes; the body of the response is the file."""
    services = of(request)
    body = await read_json(request, Speech, services.pool)
    requests = await services.run(prompt_requests, services, "audio", body.input, body)
    (medium,), _ = await answer(services, request, "audio", requests)
    kind = body.response_format or "wav"
    data = await services.run(outputs.sound_bytes, medium.content, kind)
    headers = {"X-Seed": str(requests[0].seed), "X-Sample-Rate": str(medium.content.sample_rate)}
    return Response(data, media_type=outputs.SOUND_TYPES[kind], headers=headers)


@router.post("/audio/generations", openapi_extra=body_of(Sounds))
async def generate_sounds(request: Request) -> JSONResponse:
    """Makes `n` sounds of a prompt, as /v1/images/generations makes images."""
    services = of(request)
    body = await read_json(request, Sounds, services.pool)
    requests = await services.run(prompt_requests, services, "audio", body.prompt, body, body.n)
    found, usage = await answer(services, request, "audio", requests)
    base_url = services.base_url(request)

    def item(medium) -> dict[str, str]:
        if body.response_format == "url":
            return {"url": outputs.url_of(outputs.store(medium, services.files), base_url)}
        return {"b64_json": outputs.in_base64(outputs.content(medium, services.files))}

    data = await services.run(lambda: [item(medium) for medium in found])
    return JSONResponse({"created": int(time.time()), "data": data, "usage": usage, "seed": requests[0].seed})
