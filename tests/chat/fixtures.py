"""Fixtures of tests that ask an endpoint."""

import pytest

from nextgpt_jax.chat import client


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The first wait between attempts is short, and no proxy is asked for 127.0.0.1."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "*")
