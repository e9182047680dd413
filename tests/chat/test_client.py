"""Asking an endpoint over real sockets: what is retried, what ends the run, what is limited."""

import pytest

from nextgpt_jax.building.replies import object_schema, text_schema
from nextgpt_jax.chat.client import ChatClient, Endpoint, Rejected, Stopped, key_from
from nextgpt_jax.chat.costs import Usage
from nextgpt_jax.chat.limits import RateLimiter
from nextgpt_jax.errors import UserError
from tests.chat.server import Answer, completion, failure, serving

SCHEMA = object_schema(word=text_schema(1, 9))
ASK = [{"role": "user", "content": "a word, please"}]


def complete(url, **fields):
    with ChatClient(Endpoint(url, "m", **fields)) as chat:
        return chat.complete(ASK, SCHEMA, 10)


def test_a_request_and_its_reply():
    with serving(lambda number, body: completion("hello", usage=(11, 2))) as server:
        extra = {"temperature": 0.5, "max_tokens": None}
        reply = complete(server.url, key="secret", response_format="json_schema", extra=extra)
        complete(f"{server.url}/chat/completions", response_format="none")
    assert reply == ("hello", Usage(11, 2)) and server.keys == ["Bearer secret", None]
    first, second = server.requests
    plain = object_schema(word={"type": "string"})  # services differ in the limits that they take
    assert first == {
        "model": "m", "messages": ASK, "temperature": 0.5,
        "response_format": {"type": "json_schema",
                            "json_schema": {"name": "reply", "strict": True, "schema": plain}},
    }  # fmt: skip
    assert second == {"model": "m", "messages": ASK, "max_tokens": 1500}


def test_what_passes_is_retried():
    answers = [
        failure(429, Retry_After="0"), failure(500), failure(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        Answer(b"no JSON"), Answer(b'{"choices": []}'), Answer(b'{"choi', cut=True), completion("at last", usage=None),
    ]  # fmt: skip
    with serving(lambda number, body: answers[number]) as server:
        reply = complete(server.url)
    assert reply.text == "at last" and len(server.requests) == 7 and reply.usage.tokens_in > 0


@pytest.mark.parametrize(
    "answer, fields, message, requests",
    [
        (failure(500, "down"), {"retries": 2}, "failed 3 times: status 500: down; what was answered is kept", 3),
        (
            failure(401, "bad key secret"),
            {"key": "secret"},
            r"refuses the key: status 401: bad key \*\*\*; --key",
            1,
        ),
        (failure(404, "no model m"), {}, "does not answer: status 404: no model m", 1),
        (failure(302), {}, "does not answer: status 302", 1),
        (failure(429, "insufficient_quota"), {}, "does not answer: status 429", 1),
        (failure(400, "unknown field"), {}, "refuses the request: status 400: unknown field; --response_format", 1),
    ],
)
def test_what_does_not_pass_ends_the_run(answer, fields, message, requests):
    with serving(lambda number, body: answer) as server, pytest.raises(UserError, match=message) as error:
        complete(server.url, **fields)
    assert len(server.requests) == requests and "secret" not in str(error.value)


def test_replies_that_cannot_be_used():
    answers = [completion("ok"), completion("hal", "length"), completion(None), failure(400, "filtered")]
    with serving(lambda number, body: answers[number]) as server, ChatClient(Endpoint(server.url, "m")) as chat:
        chat.complete(ASK, SCHEMA, 10)
        for message, usage in (("cut off", Usage(7, 3)), ("empty", Usage(7, 3)), ("status 400", Usage())):
            with pytest.raises(Rejected, match=message) as error:
                chat.complete(ASK, SCHEMA, 10)
            assert error.value.usage == usage
        chat.stopped.set()
        with pytest.raises(Stopped):
            chat.complete(ASK, SCHEMA, 10)


def test_nobody_there():
    with serving(lambda number, body: completion("x")) as server:
        pass
    with pytest.raises(UserError, match="127.0.0.1.* failed 3 times: no connection"):
        complete(server.url)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"url": "host/v1"}, "--endpoint: give the URL of the API"),
        ({"url": "file:///x"}, "--endpoint: give the URL"),
        ({"url": "http://[::1/v1"}, "--endpoint: give the URL"),
        ({"url": "http://host:port/v1"}, "--endpoint: give the URL"),
        ({"url": "http://host/v1\n"}, "--endpoint: give the URL"),
        ({"url": "http://me:hidden@host/v1"}, "not 'http://host/v1'"),
        ({"model": ""}, "--model is missing"),
        ({"response_format": "xml"}, "'xml' is not one of json_schema, json_object, none"),
        ({"concurrency": 0}, "--concurrency=0: give 1 or more"),
        ({"tokens_per_minute": float("nan")}, "--tokens_per_minute=nan: give 0 or more"),
        ({"key": "a b"}, "key has characters that no key has"),
    ],
)
def test_fields(fields, message):
    with pytest.raises(UserError, match=message) as error:
        Endpoint(**{"url": "http://host/v1", "model": "m", **fields})
    assert "hidden" not in str(error.value)


def test_the_key_is_in_no_repr(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    assert key_from("SOME_KEY") == "secret" and key_from("") == key_from("NO_SUCH_KEY") == ""
    assert "secret" not in repr(Endpoint("http://host", "m", "secret"))


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_limits_of_requests_and_tokens():
    clock = Clock()
    limiter = RateLimiter(30, 6000, clock, clock.sleep)
    times = []
    for tokens in (100, 100, 400, 100, 100):
        limiter.acquire(tokens)
        times.append(clock.now)
    assert times == [0, 2, 4, 8, 10]  # at least 2 s apart, and 100 tokens take 1 s
    limiter.correct(300)
    limiter.acquire(1)
    assert clock.now == 14
    limiter.pause(60)
    limiter.acquire(1)
    assert clock.now == 74


def test_without_limits_nothing_waits():
    limiter = RateLimiter(clock=lambda: 0.0, sleep=lambda seconds: pytest.fail("waited"))
    limiter.acquire(10**9)
    limiter.acquire(1)
