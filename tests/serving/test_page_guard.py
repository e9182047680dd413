"""What the chat page lets through to Gradio."""

import asyncio
import json

import pytest

from nextgpt_jax.serving.page_guard import OnlyUploads


def ask(folder, path, *, body=b"", chunks=1, method="POST"):
    """The status of a request, and the body that arrives at the app."""
    arrived, sent = [], []
    pieces = [body] if chunks == 1 else [body[:9], body[9:]]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            arrived.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200})

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path}
    asyncio.run(OnlyUploads(app, folder, asyncio.Event())(scope, receive, send))
    return sent[0]["status"], b"".join(arrived)


def message(*paths):
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
    return json.dumps({"data": [{"text": "hi", "files": files}], "fn_index": 0}).encode()


@pytest.mark.parametrize("chunks", [1, 2])
def test_messages_with_uploads_arrive(tmp_path, chunks):
    body = message(f"{tmp_path}/0a/a.png", f"{tmp_path}/0b/b.wav")
    assert ask(tmp_path, "/chat/gradio_api/queue/join", body=body, chunks=chunks) == (200, body)
    assert ask(tmp_path, "/chat/gradio_api/queue/join", body=b"no json") == (200, b"no json")


@pytest.mark.parametrize("path", ["/etc/passwd", "https://example.com/a.png", "a.png", "{}/../a.png", 3, "\0", ["/a"]])
def test_other_files_do_not(tmp_path, path):
    path = path.format(tmp_path) if isinstance(path, str) else path
    body = message(f"{tmp_path}/0a/a.png", path)
    for address in ("/chat/gradio_api/queue/join", "/gradio_api/run/send", "/gradio_api/call/send/"):
        assert ask(tmp_path, address, body=body) == (403, b"")


def test_links_out_of_the_folder_do_not(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    assert ask(tmp_path, "/gradio_api/queue/join", body=message(f"{tmp_path}/link/passwd"))[0] == 403


@pytest.mark.parametrize(
    "path", ["/chat/gradio_api/file=https://example.com", "/gradio_api/file=HTTP://a", "/gradio_api/proxy=https://a.b"]
)
def test_nothing_is_fetched(tmp_path, path):
    assert ask(tmp_path, path, method="GET")[0] == 403


def test_uploads_are_not_held_in_memory_but_other_bodies_are_limited(tmp_path):
    large = b" " * 4_000_001
    assert ask(tmp_path, "/chat/gradio_api/upload", body=large) == (200, large)
    assert ask(tmp_path, "/chat/gradio_api/queue/join", body=large) == (413, b"")


def test_open_pages_are_let_go_at_the_end(tmp_path):
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    async def run():
        closing = asyncio.Event()
        guard = OnlyUploads(app, tmp_path, closing)
        scope = {"type": "http", "method": "GET", "path": "/chat/gradio_api/heartbeat/a"}
        held = asyncio.ensure_future(guard(scope, None, None))
        await asyncio.sleep(0.01)
        assert not held.done()
        closing.set()
        await asyncio.wait_for(held, 1)

    asyncio.run(run())
