"""Two replicas of the server on one machine."""

import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest

from tests import ROOT

pytest.importorskip("ray.serve", exc_type=ImportError)
pytestmark = pytest.mark.slow


def test_two_replicas():
    """Both answer, rightly; a stream is one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "examples.serve_ray", "--config=keypad", "--replicas=2", f"--port={port}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert any(line.strip() == "ready" for line in process.stdout)
        threading.Thread(target=process.stdout.read, daemon=True).start()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        found: dict[int, str] = {}
        replicas = set()

        def ask(i, word):
            messages = [{"role": "user", "content": f"draw a {word}"}]
            options = {"model": "keypad", "messages": messages, "extra_body": {"steps": 2}}
            found[i] = client.chat.completions.create(**options).choices[0].message.content
            metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
            replicas.update(line for line in metrics if line.startswith("nextgpt_answer_seconds_created"))

        words = "one two three four five six seven eight".split()
        threads = [threading.Thread(target=ask, args=item) for item in enumerate(words)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(word in found[i] for i, word in enumerate(words))
        assert len(replicas) == 2
        messages = [{"role": "user", "content": "draw a seven"}]
        chunks = list(client.chat.completions.create(model="keypad", messages=messages, stream=True))
        assert "seven" in "".join(c.choices[0].delta.content or "" for c in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    finally:
        process.terminate()
        process.wait()
