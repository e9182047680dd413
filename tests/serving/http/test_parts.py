"""Parts of the server by themselves: rates, files, public addresses."""

import pytest
from starlette.datastructures import Headers

from nextgpt_jax.errors import UserError
from nextgpt_jax.serving.http import remote
from nextgpt_jax.serving.http.access import Rates
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.settings import Settings
from nextgpt_jax.serving.http.store import FileStore
from tests.chat.server import Answer


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_rates():
    clock = Clock()
    rates = Rates(2, clock)
    for _ in range(2):
        rates.spend("a")
    with pytest.raises(ApiError, match="2 requests per minute") as error:
        rates.spend("a")
    assert error.value.status == 429 and error.value.headers == {"Retry-After": "30"}
    rates.spend("b")
    clock.now += 30
    rates.spend("a")
    with pytest.raises(ApiError):
        rates.spend("a")
    for _ in range(100):
        Rates(0).spend("a")


def test_files_expire_and_make_room():
    clock = Clock()
    store = FileStore(10, 100, clock)

    def add(size):
        path = store.temporary(".png")
        path.write_bytes(bytes(size))
        return store.add(path)

    first, second = add(60), add(30)
    assert store.get(first.name) == first and len({first.name, second.name}) == 2
    third = add(50)
    assert store.get(first.name) is None and not first.path.exists() and store.get(third.name)
    clock.now += 10
    assert store.get(third.name) is None
    store.sweep()
    assert not third.path.exists()
    folder = third.path.parent
    assert folder.stat().st_mode & 0o077 == 0
    store.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x",
        "http://localhost/x",
        "http://[::1]/x",
        "http://0.0.0.0/x",
        "http://10.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://192.168.1.1:8080/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fd00::1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://224.0.0.1/",
        "http://user@example.com/",
        "ftp://example.com/",
        "http://",
        "http://[::1",
        "http://a:99999/",
    ],
)
def test_private_addresses_are_never_asked(tmp_path, url):
    with pytest.raises(ApiError) as error:
        remote.fetch(url, tmp_path / "x", max_bytes=10, seconds=1)
    assert error.value.status == 400 and not (tmp_path / "x").exists()


def test_public_addresses_are_fetched_within_limits(tmp_path, monkeypatch, http_files):
    """Of a server here that passes for a public one."""
    monkeypatch.setattr(remote, "public_address", lambda host, port: "127.0.0.1")
    url = http_files(Answer(bytes(1000), headers={"Content-Type": "image/png; x=y"}))
    assert remote.fetch(url, tmp_path / "x", max_bytes=1000, seconds=5) == "image/png"
    assert (tmp_path / "x").read_bytes() == bytes(1000)
    for answer, message in (
        (Answer(bytes(1001)), "longer than"),
        (Answer(b"", 404), "404"),
        (Answer(b"", 302, {"Location": "/again"}), "redirects"),
        (Answer(b"", 302, {"Location": "file:///etc/passwd"}), "http or https"),
        (Answer(b"x", cut=True), "http"),
    ):
        with pytest.raises(ApiError, match=message):
            remote.fetch(http_files(answer), tmp_path / "y", max_bytes=1000, seconds=5)


@pytest.fixture
def http_files():
    """Serves one answer to all GETs; returns its URL."""
    import http.server
    import threading

    servers = []

    def serve(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(answer.status)
                for name, value in Headers(answer.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body) + 100 * answer.cut))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://public.example:{server.server_address[1]}/x.png"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("wrong", [{"max_upload": 0}, {"rate": -1}, {"rate": float("nan")}, {"keys": (" ",)}])
def test_settings(wrong):
    with pytest.raises(UserError):
        Settings(**wrong)
