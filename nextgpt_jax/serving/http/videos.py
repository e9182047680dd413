"""/v1/videos: begun, polled, fetched, listed and deleted as OpenAI's client does."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import UploadFile

from nextgpt_jax.serving.http.bodies import Form, is_form, read_form, read_json
from nextgpt_jax.serving.http.documents import form_of
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.generation import check_value, prompt_requests
from nextgpt_jax.serving.http.schemas import Part, Videos
from nextgpt_jax.serving.http.services import Services, of
from nextgpt_jax.serving.http.video_jobs import VideoJobs, seconds

router = APIRouter()
_REFERENCE = "input_reference"
_POLL = {"openai-poll-after-ms": "500"}  # what the official client waits between two looks


def _jobs(request: Request) -> VideoJobs:
    return request.app.state.video_jobs


@router.post("/videos", openapi_extra=form_of(Videos, _REFERENCE))
async def create_video(request: Request) -> JSONResponse:
    """Begins a video of a prompt; an `input_reference` is an image or a video that the prompt speaks of."""
    services, form = of(request), None
    if is_form(request):
        form = await read_form(request)
        body = Videos.parse_form(_fields(form.fields))
    else:
        body = await read_json(request, Videos, services.pool)
    services.check_output("video")
    check_value("size", body.size, services.size("video"))
    check_value("seconds", body.seconds, seconds(services.engine.defaults.video))
    (one,) = await services.run(_prepare, services, request, body, form)
    job = await _jobs(request).create(one, body.prompt, request.state.caller)
    return JSONResponse(_jobs(request).to_json(job), headers=_POLL)


def _fields(fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a form; {"image_url": ...} is written as input_reference[image_url] there."""
    found: dict[str, Any] = dict(fields)
    for name in ("image_url", "video_url"):
        if (url := found.pop(f"{_REFERENCE}[{name}]", None)) is not None:
            found.setdefault(_REFERENCE, {})[name] = url
    return found


def _prepare(services: Services, request: Request, body: Videos, form: Form | None):
    with services.inputs(request, form) as inputs:
        paths: dict[str, list[Any]] = {}
        files: list[UploadFile] = form.files.get(_REFERENCE, []) if form else []
        if form and (unknown := set(form.files) - {_REFERENCE}):
            raise ApiError(f"{min(unknown)} is no file of a video", param=min(unknown), code="unsupported")
        urls = body.input_reference.model_dump(exclude_none=True) if body.input_reference else {}
        if len(files) + len(urls) > 1:
            raise ApiError(f"{_REFERENCE}: give one file or URL", param=_REFERENCE, code="invalid_value")
        for file in files:
            kind = "video" if (file.content_type or "").startswith("video/") else "image"
            paths[kind] = [inputs.upload(_REFERENCE, kind, _REFERENCE)]
        for name, url in urls.items():
            part = Part.model_validate({"type": name, name: {"url": url}})
            modality, path = inputs.read(part, f"{_REFERENCE}.{name}")
            paths[modality] = [path]
        with inputs.named():
            return prompt_requests(services, "video", body.prompt, body, paths=paths)


@router.get("/videos")
async def list_videos(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> JSONResponse:
    """The videos of this key, page by page."""
    jobs = _jobs(request).of_caller(request.state.caller)
    jobs = jobs if order == "asc" else jobs[::-1]
    if after is not None:
        names = [job.id for job in jobs]
        if after not in names:
            raise ApiError(f"after: there is no video {after!r}", param="after", code="invalid_value")
        jobs = jobs[names.index(after) + 1 :]
    data = [_jobs(request).to_json(job) for job in jobs[:limit]]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return JSONResponse({"object": "list", "data": data, "has_more": len(jobs) > limit} | ends)


@router.get("/videos/{name}")
async def retrieve_video(request: Request, name: str) -> JSONResponse:
    """How far a video is."""
    job = _jobs(request).get(name, request.state.caller)
    return JSONResponse(_jobs(request).to_json(job), headers=_POLL)


@router.get("/videos/{name}/content")
async def video_content(request: Request, name: str, variant: Literal["video"] = "video") -> Response:
    """The file of a video that is complete."""
    job = _jobs(request).get(name, request.state.caller)
    if not job.file:
        raise ApiError(f"the video is {job.status}", code="invalid_state")
    if (file := of(request).files.get(job.file.name)) is None:
        raise ApiError("the video has made room for others", 404, code="not_found")
    return FileResponse(file.path, media_type="video/mp4", filename=f"{job.id}.mp4")


@router.delete("/videos/{name}")
async def delete_video(request: Request, name: str) -> JSONResponse:
    """Removes a video, or gives it up while it is being made."""
    job = _jobs(request).get(name, request.state.caller)
    _jobs(request).delete(job)
    return JSONResponse({"id": job.id, "object": "video.deleted", "deleted": True})
