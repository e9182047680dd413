"""The shipped weights answer as README says: loaded through the converter, asked through the engine."""

import numpy as np
import pytest

from configs.keypad import get_config
from examples.keypad import judge, language, world
from examples.keypad.evaluate import named_digit
from nextgpt_jax.inference.cli import load_engine
from nextgpt_jax.inference.engine import Request
from nextgpt_jax.prompts import Input, Turn


@pytest.fixture(scope="module")
def engine():
    return load_engine(get_config(), "")


def ask(engine, *conversations):
    options = dict(steps=20, guidance=engine.defaults.guidance, temperature=0.0, max_new_tokens=64)
    return engine.answer([Request((Turn(tuple(c)),), seed=i, **options) for i, c in enumerate(conversations)])


def test_draws_the_digits_it_is_asked_for(engine):
    replies = ask(engine, *[(language.HELD_OUT_DRAWING[0].format(digit=word),) for word in language.WORDS])
    assert all(len(reply.images) == 1 for reply in replies)
    seen_as = judge.classify(np.stack([reply.images[0] for reply in replies]))
    assert (seen_as == np.arange(10)).sum() >= 9


def test_names_the_digits_it_is_shown(engine):
    images, labels = world.scans()
    chosen = range(1437, 1797, 12)
    replies = ask(engine, *[(Input("image", images[i]), language.HELD_OUT_QUESTIONS[i % 8]) for i in chosen])
    assert sum(named_digit(r.text) == labels[i] for i, r in zip(chosen, replies, strict=True)) >= 26
    assert not any(reply.images for reply in replies)


def test_just_talks_otherwise(engine):
    replies = ask(engine, *[(prompt,) for prompt in language.TEXT_ONLY[:16]])
    assert not any(reply.images for reply in replies) and all(reply.text for reply in replies)
