"""Checks of requests and of the defaults of a config."""

import copy
import functools

import numpy as np
import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.validation import parse_modality
from nextgpt_jax.prompts import Input
from tests.inference.requests import request


@pytest.mark.parametrize(
    "segments, options, message",
    [
        (["word " * 200], {}, r"the prompt has \d+ tokens but the context holds 128"),
        (["hi"], {"num_inference_steps": 0}, "num_inference_steps is out of range: 0"),
        (["hi"], {"sampler": "dpm"}, "sampler='dpm' is not one of pndm, ddim"),
        (["hi"], {"top_k": 10**12}, "top_k is out of range"),
        (
            [Input("image", np.zeros((1, 100, 3), np.uint8))],
            {},
            r"image input has shape \[1, 100, 3\], expected \[16, 16, 3\]",
        ),
        (["hi"], {"top_p": 0.0}, "top_p is out of range"),
        (["hi"], {"temperature": float("nan")}, "temperature is out of range"),
        (["hi"], {"modality": "auto,image"}, "auto and text cannot be combined"),
        (["hi"], {"modality": "smell"}, "'smell' is not one of auto, text, image, video, audio"),
        (["hi"], {"modality": "image", "max_new_tokens": 3}, "needs 4 new tokens but has room for 3"),
        (["hi"], {"modality": "image,audio", "max_new_tokens": 11}, "needs 12 new tokens but has room for 11"),
        ([Input("depth", np.zeros((4, 4), np.float32))], {}, "encoder does not read depth .only image, video, audio."),
    ],
)
def test_impossible_requests(tiny_engine, segments, options, message):
    with pytest.raises(UserError, match=message):
        tiny_engine.validate(request(*segments, **options))


def test_unknown_modality():
    with pytest.raises(UserError, match="smell"):
        parse_modality(("image", "audio"), "smell")


@pytest.mark.parametrize("field, value", [("image.batch", 0), ("video.fps", 0.0), ("max_media", -1)])
def test_impossible_defaults(tiny_system, tiny_config, field, value):
    defaults = copy.deepcopy(tiny_config.generation)
    *parents, last = field.split(".")
    setattr(functools.reduce(getattr, parents, defaults), last, value)
    with pytest.raises(UserError, match=f"generation.{field} is {value}"):
        Engine(tiny_system, defaults)
