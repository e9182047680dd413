"""Fixtures of the tests of chat."""

from tests.chat.fixtures import no_waiting  # noqa: F401
