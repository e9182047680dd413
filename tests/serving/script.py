"""In place of a batcher: one whose answers a test writes."""

import functools
import types
from collections.abc import Sequence
from typing import Any

from configs.keypad import get_config
from nextgpt_jax.inference.types import Request
from nextgpt_jax.serving.answers import Answer, Cancelled, Event
from nextgpt_jax.weights.assemble import model_config


@functools.cache
def _engine() -> Any:
    """What requests are checked against: the keypad model, without weights."""
    config = get_config()
    return types.SimpleNamespace(config=model_config(config.model), defaults=config.generation)


class Script:
    """Each answer gets the events of `events`, then those that the test delivers. A cancelled one ends at once."""

    def __init__(self, events: Sequence[Event] = ()):
        self.engine, self.events = _engine(), events
        self.requests: list[Request] = []
        self.answers: list[Answer] = []

    def submit(self, request, on_event):
        answer = Answer(1, lambda: answer.deliver(Cancelled("the request was cancelled")), on_event)
        self.requests.append(request)
        self.answers.append(answer)
        for event in self.events:
            answer.deliver(event)
        return answer
