"""A judge on 127.0.0.1."""

import pytest

from tests.chat.fixtures import no_waiting  # noqa: F401
from tests.chat.server import completion, serving


@pytest.fixture
def judge():
    """An endpoint that finds every answer good."""

    def answer(number, body):
        return completion(
            "8 6" if "[Assistant 1]" in body["messages"][-1]["content"] else "{'pred': 'yes', 'score': 4}"
        )

    with serving(answer) as server:
        yield server
