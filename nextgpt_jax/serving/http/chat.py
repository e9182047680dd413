"""POST /v1/chat/completions."""

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from nextgpt_jax.inference import types
from nextgpt_jax.serving.http import outputs
from nextgpt_jax.serving.http.answers import Answers
from nextgpt_jax.serving.http.bodies import Form, is_form, read_form, read_json
from nextgpt_jax.serving.http.conversations import chat_request, seeds
from nextgpt_jax.serving.http.documents import body_of
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.schemas import Chat
from nextgpt_jax.serving.http.services import Services, of
from nextgpt_jax.serving.http.sse import EventStream

router = APIRouter()


@router.post("/chat/completions", openapi_extra=body_of(Chat, "request"))
async def chat_completions(request: Request) -> Response:
    """Answers a conversation with text and media; as a form, the JSON is the field `request`, and `upload:NAME` in a
    URL is the file NAME of the form."""
    services, form = of(request), None
    if is_form(request):
        form = await read_form(request)
        body = await services.run(Chat.parse, _json_field(form))
    else:
        body = await read_json(request, Chat, services.pool)
    services.check_model(body.model)
    if body.stream_options and not body.stream:
        raise ApiError("stream_options: only with stream", param="stream_options", code="invalid_value")
    number = services.number(body.n)
    base_url = services.base_url(request)

    def prepare() -> types.Request:
        with services.inputs(request, form) as inputs:
            return chat_request(body.messages, services.within_limits(body.options()), inputs, services.engine)

    one = await services.run(prepare)
    requests = [dataclasses.replace(one, seed=seed) for seed in seeds(body.seed, number)]
    reply = _Reply(services, requests, base_url, body.media_format == "url")
    answers = services.answers()
    await answers.submit(requests, stops=body.stops(), stream=bool(body.stream))
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        settings = services.settings
        return EventStream(
            reply.chunks(answers, usage), send_seconds=settings.send_seconds, ping_seconds=settings.ping_seconds
        )
    with answers:
        responses = await answers.results(request)
    choices = await services.run(lambda: [reply.choice(i, response) for i, response in enumerate(responses)])
    return JSONResponse(reply.head("chat.completion") | {"choices": choices, "usage": _usage(answers, responses)})


def _json_field(form: Form) -> bytes:
    if "request" not in form.fields and "request" in form.files:  # some clients give its content type
        return form.files["request"][0].file.read()
    if set(form.fields) != {"request"}:
        raise ApiError("a form has the JSON of the request as its field `request`, and files", param="request")
    return form.fields["request"].encode()


def _usage(answers: Answers, responses: list[types.Response]) -> dict[str, int]:
    made = sum(response.tokens for response in responses)
    prompt = answers.prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


class _Reply:
    """The JSON of one completion."""

    def __init__(self, services: Services, requests: list[types.Request], base_url: str, as_url: bool):
        self._services, self._seed = services, requests[0].seed
        self._base_url, self._as_url = base_url, as_url
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def head(self, kind: str) -> dict[str, Any]:
        """What comes with every object. `seed` repeats the answer."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._services.settings.name,
            "seed": self._seed,
        }

    def choice(self, index: int, response: types.Response) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": response.text, "refusal": None}
        if response.media:
            message["media"] = [self._part(medium) for medium in response.media]
        return {"index": index, "message": message, "logprobs": None, "finish_reason": response.finish_reason}

    def _part(self, medium: types.MediaOutput) -> dict[str, Any]:
        return outputs.part(medium, self._services.files, self._base_url, self._as_url)

    async def chunks(self, answers: Answers, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The events of a streamed completion: for each choice its role, text, media, and why it ends."""
        head = self.head("chat.completion.chunk") | ({"usage": None} if with_usage else {})

        def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            return head | {"choices": [choice]}

        with answers:
            begun: set[int] = set()
            responses = []
            async for index, event in answers.events():
                if index not in begun:
                    begun.add(index)
                    yield chunk(index, {"role": "assistant", "content": ""})
                if event.text:
                    yield chunk(index, {"content": event.text})
                if event.media:
                    part = await self._services.run(self._part, event.media)
                    yield chunk(index, {"media": [part]})
                if event.response:
                    responses.append(event.response)
                    yield chunk(index, {}, event.response.finish_reason)
            if with_usage:
                yield head | {"choices": [], "usage": _usage(answers, responses)}
