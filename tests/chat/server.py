"""A chat endpoint on 127.0.0.1 that answers, or fails, as a test tells it to."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What the server sends; `cut`: it promises more bytes and closes the connection."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012
    cut: bool = False


def completion(text: str | None, finish: str = "stop", usage: Any = (7, 3)) -> Answer:
    """A reply of the model."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if usage:
        body["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return Answer(json.dumps(body).encode())


def failure(status: int, message: str = "busy", **headers: str) -> Answer:
    return Answer(json.dumps({"error": {"message": message}}).encode(), status, headers)


class Server:
    """Attributes: `requests`: the bodies it got, `keys`: their Authorization, `url`: of its API."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer], url: str = ""):
        self.answer, self.url = answer, url
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()


@contextlib.contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Answer]) -> Iterator[Server]:
    """Runs a server whose answer to the i-th request with this body is `answer(i, body)`."""
    server = Server(answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.requests)
                server.requests.append(body)
                server.keys.append(self.headers.get("Authorization"))
            assert self.path == "/v1/chat/completions"
            found = server.answer(number, body)
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(found.body) + 100 * found.cut))
            self.end_headers()
            self.wfile.write(found.body)
            self.close_connection |= found.cut

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        server.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()
