"""One server on the tiny random system, and the official client."""

import dataclasses

import openai
import pytest

from configs.keypad import get_config
from nextgpt_jax.config import ServingConfig
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.serving.batcher import Batcher
from tests.serving.http.server import KEY, serving


@pytest.fixture(scope="session")
def batcher(tiny_system, tiny_config):
    defaults = dataclasses.replace(tiny_config.generation, max_new_tokens=40)
    return Batcher(Engine(tiny_system, defaults), ServingConfig(rows=4, max_new_tokens=48, queue=64))


@pytest.fixture(scope="session")
def address(batcher):
    """Text is embedded by the keypad's tower: the tiny system has none."""
    limits = {"keys": (KEY, "another"), "max_upload": 1_000_000, "upload_seconds": 1.5}
    with serving(batcher, get_config().model.encoder, **limits) as url:
        yield url


@pytest.fixture(scope="session")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client
