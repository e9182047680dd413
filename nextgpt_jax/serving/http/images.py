"""POST /v1/images/generations and /v1/images/edits."""

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from nextgpt_jax.inference import types
from nextgpt_jax.inference.types import MediaOutput
from nextgpt_jax.serving.http import outputs
from nextgpt_jax.serving.http.bodies import Form, read_form, read_json
from nextgpt_jax.serving.http.documents import body_of, form_of
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.generation import answer, check_value, prompt_requests
from nextgpt_jax.serving.http.schemas import ImageEdits, Images
from nextgpt_jax.serving.http.services import Services, of

router = APIRouter()


@router.post("/images/generations", openapi_extra=body_of(Images))
async def generate_images(request: Request) -> JSONResponse:
    """Makes `n` images of a prompt."""
    services = of(request)
    body = await read_json(request, Images, services.pool)
    services.check_output("image")
    check_value("size", body.size, services.size("image"))
    requests = await services.run(prompt_requests, services, "image", body.prompt, body, body.n)
    return await _images(services, request, body, requests)


@router.post("/images/edits", openapi_extra=form_of(ImageEdits, "image", json=False))
async def edit_images(request: Request) -> JSONResponse:
    """Makes `n` images that begin from the form's `image`, as a prompt says."""
    services = of(request)
    form = await read_form(request)
    body = ImageEdits.parse_form(form.fields)
    services.check_output("image")
    check_value("size", body.size, services.size("image"))
    requests = await services.run(_edits, services, request, body, form)
    return await _images(services, request, body, requests)


def _edits(services: Services, request: Request, body: ImageEdits, form: Form) -> list[types.Request]:
    if unknown := set(form.files) - {"image"}:
        name = min(unknown)
        raise ApiError(f"{name} is not supported by this server: leave it out", param=name, code="unsupported")
    if len(form.files.get("image", ())) != 1:
        raise ApiError("image: give one file, which is edited", param="image", code="invalid_value")
    with services.inputs(request, form) as inputs, inputs.named():
        paths = {"image": [inputs.upload("image", "image", "image")]}
        return prompt_requests(services, "image", body.prompt, body, body.n, paths)


async def _images(
    services: Services, request: Request, body: Images, requests: Sequence[types.Request]
) -> JSONResponse:
    found, usage = await answer(services, request, "image", requests)
    base_url = services.base_url(request)
    data = await services.run(lambda: [_item(services, medium, body, base_url) for medium in found])
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": data,
            "size": services.size("image"),
            "output_format": body.output_format or "png",
            "usage": usage | {"input_tokens_details": {"image_tokens": 0, "text_tokens": usage["input_tokens"]}},
            "seed": requests[0].seed,
        }
    )


def _item(services: Services, medium: MediaOutput, body: Images, base_url: str) -> dict[str, Any]:
    kind = body.output_format or "png"
    data = outputs.image_bytes(medium.content, kind)
    if body.response_format == "url":
        path = services.files.temporary(f".{kind}")
        path.write_bytes(data)
        return {"url": outputs.url_of(services.files.add(path), base_url)}
    return {"b64_json": outputs.in_base64(data)}
