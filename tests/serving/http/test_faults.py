"""Faults of clients and of the model, while others are answered."""

import dataclasses
import json
import socket
import threading
import time

import httpx
import openai
import pytest

from nextgpt_jax.serving.answers import QueueFull
from tests.serving.http.media import user

ASK = {"model": "keypad", "messages": [user("draw")], "temperature": 0}
LONG = {"steps": 1000, "modality": "image"}
SHORT = {"modality": "text"}


def wait_until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nothing_left(batcher):
    stats = batcher.stats()
    return not (stats.waiting or stats.decoding or stats.media)


@pytest.fixture
def cancelled(batcher):
    """How many answers were given up since the test began."""
    before = batcher.stats().ended["cancelled"]
    return lambda: batcher.stats().ended["cancelled"] - before


def test_a_client_that_goes_in_the_middle_of_a_stream_frees_its_row(client, batcher, cancelled):
    with client.chat.completions.create(**ASK, stream=True, n=2, extra_body=LONG) as stream:
        next(stream)
        other = client.chat.completions.create(**ASK, max_tokens=4, extra_body=SHORT)
    wait_until(lambda: cancelled() == 2 and nothing_left(batcher))
    assert other.usage.completion_tokens == 4


@pytest.mark.parametrize(
    "path, body", [("chat/completions", ASK | LONG), ("images/generations", {"prompt": "draw", "steps": 1000})]
)
def test_a_client_that_goes_while_it_waits(client, address, batcher, cancelled, path, body):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/{path}", json=body, headers=client.auth_headers, timeout=0.3)
    wait_until(lambda: cancelled() == 1 and nothing_left(batcher))


def test_a_video_that_is_deleted_is_given_up(client, batcher, cancelled):
    video = client.videos.create(prompt="a film", extra_body={"steps": 1000})
    with pytest.raises(openai.BadRequestError, match="the video is"):
        client.videos.download_content(video.id)
    client.videos.delete(video.id)
    wait_until(lambda: cancelled() == 1 and nothing_left(batcher))


def test_videos_are_seen_by_their_own_key_only(client):
    other = client.with_options(api_key="another")
    video = client.videos.create(prompt="a film", extra_body={"steps": 1000})
    with pytest.raises(openai.NotFoundError):
        other.videos.retrieve(video.id)
    assert list(other.videos.list()) == [] and len(list(client.videos.list())) == 1
    client.videos.delete(video.id)


def test_a_decoder_that_fails_for_one_request(client, batcher, monkeypatch):
    """The others are answered; the one gets a 500, or an error in its stream, or a failed video."""
    start = type(batcher.engine.media_sampler).start

    def failing(self, groups):
        if any(group.request.seed == 13 for group in groups):
            raise RuntimeError("/secret/path is broken")
        return start(self, groups)

    monkeypatch.setattr(type(batcher.engine.media_sampler), "start", failing)
    found = {}

    def ask(seed):
        try:
            found[seed] = client.chat.completions.create(**ASK, seed=seed, extra_body=LONG | {"steps": 2})
        except openai.APIError as error:
            found[seed] = error

    threads = [threading.Thread(target=ask, args=[seed]) for seed in (12, 13, 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(found[13], openai.InternalServerError) and "secret" not in str(found[13])
    assert all(found[seed].choices[0].message.media for seed in (12, 14))

    text = []
    with pytest.raises(openai.APIError, match="failed to answer") as error:
        for chunk in client.chat.completions.create(**ASK, seed=13, stream=True, extra_body=LONG):
            text.append(chunk.choices[0].delta.content)
            assert chunk.choices[0].finish_reason is None
    assert "".join(text) and "secret" not in str(error.value.body)

    video = client.videos.create_and_poll(prompt="x", poll_interval_ms=20, extra_body={"seed": 13, "steps": 2})
    client.videos.delete(video.id)
    assert video.status == "failed" and video.error.code == "internal_error" and "secret" not in video.error.message


def test_a_full_queue(client, batcher, cancelled, monkeypatch):
    """429 says when to come back; of an answer with several choices none stays behind."""
    submit, calls = batcher.submit, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) % 2 == 0:
            raise QueueFull("1 requests are waiting: try again later")
        return submit(*args, **kwargs)

    monkeypatch.setattr(batcher, "submit", full)
    with pytest.raises(openai.RateLimitError) as error:
        client.chat.completions.create(**ASK, n=2, extra_body=LONG)
    assert int(error.value.response.headers["retry-after"]) > 0 and error.value.code == "queue_full"
    wait_until(lambda: cancelled() == 1 and nothing_left(batcher))


def test_a_time_limit(client, batcher, monkeypatch):
    monkeypatch.setattr(batcher, "config", dataclasses.replace(batcher.config, timeout=0.2))
    with pytest.raises(openai.InternalServerError) as error:
        client.chat.completions.create(**ASK, extra_body=LONG)
    assert error.value.status_code == 504 and error.value.code == "timeout"
    with pytest.raises(openai.APIError, match="time limit"):
        list(client.chat.completions.create(**ASK, stream=True, extra_body=LONG))


def test_a_client_that_does_not_finish_its_request(client, address):
    """It is told so when its time is over, and others are answered meanwhile."""
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {client.auth_headers['Authorization']}\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        assert client.chat.completions.create(**ASK, max_tokens=1, extra_body=SHORT)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_events_are_whole(client, address):
    """As server-sent events: one JSON a line, and the end marked."""
    body = ASK | SHORT | {"stream": True}
    response = httpx.post(f"{address}/v1/chat/completions", json=body, headers=client.auth_headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert choices[-1]["finish_reason"] == "length" and choices[-1]["delta"] == {}


def test_metrics_count(client, address):
    client.chat.completions.create(**ASK, max_tokens=1, extra_body=SHORT)
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(found['nextgpt_answers_total{how="answered"}']) > 0
    assert float(found['nextgpt_http_responses_total{route="/chat/completions",status="200"}']) > 0
    assert float(found["nextgpt_answer_seconds_count"]) > 0 and float(found["nextgpt_rows"]) == 4


def test_a_client_that_does_not_read(client, address, batcher):
    """What is written for it does not hold up others; once its buffers are full, its answer is given up."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps(ASK | SHORT | {"stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {client.auth_headers['Authorization']}\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: nothing_left(batcher))
        assert client.chat.completions.create(**ASK, max_tokens=1, extra_body=SHORT)
