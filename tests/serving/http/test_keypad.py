"""`nextgpt serve` on the keypad model, as a process of its own: right answers, and SIGTERM."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import openai
import pytest

from tests import ROOT
from tests.serving.http.media import part, text, user

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def started(folder, *flags):
    """The process, and the address, of a server whose temporary files are in a folder."""
    command = [sys.executable, "-m", "nextgpt_jax", "serve", "--config=keypad", "--port=0", *flags]
    environment = {"TMPDIR": str(folder)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stderr
        line = process.stdout.readline()
        assert line.startswith("serving on"), process.stderr.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started(tmp_path_factory.mktemp("temporary"), "--config.serving.rows=4") as (process, address):
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield address


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, *messages, **options):
    return client.chat.completions.create(model="keypad", messages=list(messages), **options).choices[0].message


def test_right_answers(client):
    """What it draws it reads again, in every kind of media."""
    drawn = ask(client, user("draw a seven"), seed=3)
    assert drawn.content == "Here is a handwritten seven."
    (image,) = drawn.media
    assert "seven" in ask(client, user(text("what digit is this?"), image)).content
    again = ask(client, user("draw a seven"), drawn, user("now play its tone"), seed=1)
    (tone,) = again.media
    assert tone["type"] == "audio_url" and "seven" in again.content
    assert "seven" in ask(client, user(text("which key is this?"), tone)).content
    video = client.videos.create_and_poll(prompt="show a moving two", poll_interval_ms=100, extra_body={"seed": 1})
    film = client.videos.download_content(video.id).read()
    assert "two" in ask(client, user(text("what digit is moving here?"), part(film, "video/mp4"))).content
    texts = ["a handwritten seven", "a handwritten two", "the tone of key seven"]
    found = client.embeddings.create(model="keypad", input=[*texts, image, tone], encoding_format="float").data
    vectors = np.array([item.embedding for item in found])
    assert np.argmax(vectors[3] @ vectors[:3].T) == 0 and np.argmax(vectors[4] @ vectors[:3].T) == 2


def test_answers_do_not_depend_on_others(client):
    """16 clients at once, each told its own digit."""
    digits = "zero one two three four five six seven eight nine".split()
    found: dict[int, str] = {}

    def draw(i):
        found[i] = ask(client, user(f"draw a {digits[i % 10]}"), seed=i, extra_body={"steps": 2}).content

    threads = [threading.Thread(target=draw, args=[i]) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(digits[i % 10] in found[i] for i in range(16))


def test_sigterm_finishes_what_runs(tmp_path):
    with started(tmp_path, "--api_key=abc") as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="abc", max_retries=0)
        assert ask(client, user("draw a one"), extra_body={"steps": 2}).media
        assert list(tmp_path.glob("nextgpt-serve-*"))
        options = {"extra_body": {"steps": 500}, "stream": True}
        stream = client.chat.completions.create(model="keypad", messages=[user("draw a seven")], **options)
        first = next(stream)
        process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "stop"
        assert any(getattr(chunk.choices[0].delta, "media", None) for chunk in rest) and first
        with pytest.raises(openai.APIConnectionError):
            ask(client, user("hi"))
        assert process.wait(30) == 0 and not list(tmp_path.glob("nextgpt-serve-*"))
