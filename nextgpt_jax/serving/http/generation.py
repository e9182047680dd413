"""One prompt to media of one modality: what images, sound and videos have in common."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from nextgpt_jax.inference import types
from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.serving.http.conversations import seeds
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.schemas import Sampling
from nextgpt_jax.serving.http.services import Services


def prompt_requests(
    services: Services,
    modality: str,
    prompt: str,
    body: Sampling,
    n: int | None = None,
    paths: Mapping[str, Sequence[Any]] | None = None,
) -> list[types.Request]:
    """Requests of `n` answers to a prompt, each with a medium of a modality.

    Raises:
      ApiError, UserError: a field is not valid, or the model makes no such media.
    """
    services.check_model(body.model)
    services.check_output(modality)
    number = services.number(n)
    options = services.within_limits(body.options() | {"modality": modality})
    engine = services.engine
    one = make_request(prompt, paths or {}, options, engine.config, engine.defaults)
    return [dataclasses.replace(one, seed=seed) for seed in seeds(body.seed, number)]


async def answer(
    services: Services, request: Request, modality: str, requests: Sequence[types.Request]
) -> tuple[list[types.MediaOutput], dict[str, int]]:
    """The first medium of the modality in each answer, and the tokens they took, as images report them."""
    answers = services.answers()
    with answers:
        await answers.submit(requests)
        responses = await answers.results(request)
    made, prompt = sum(response.tokens for response in responses), answers.prompt_tokens
    usage = {"input_tokens": prompt, "output_tokens": made, "total_tokens": prompt + made}
    return [medium_of(response, modality) for response in responses], usage


def medium_of(response: types.Response, modality: str) -> types.MediaOutput:
    """The first medium of a modality. Raises ApiError if there is none."""
    for medium in response.media:
        if medium.modality == modality:
            return medium
    raise ApiError(f"the model made no {modality}", 500, code="internal_error")


def check_value(name: str, value: str | None, only: str) -> None:
    """Raises ApiError unless a field has the one value that the model is configured for, or none."""
    if value not in (None, "auto", only):
        message = f"{name} is {value!r}: this server makes {only!r} only"
        raise ApiError(message, param=name, code="invalid_value")
