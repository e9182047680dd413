"""A local stand-in for Google Cloud Storage: one dictionary of objects, behind the file interface of etils.epath (by
fsspec) and behind the HTTP interface that TensorStore speaks.
"""

import contextlib
import http.server
import json
import os
import sys
import threading
import types
import urllib.parse
from collections.abc import Iterator
from unittest import mock

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Files(MemoryFileSystem):
    """gs:// in memory. Objects of the names of `MemoryFileSystem.store`: /bucket/name."""

    protocol = ("gcs", "gs")
    store: dict = {}
    pseudo_dirs: list = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        for prefix in ("gs://", "gcs://"):
            path = path.removeprefix(prefix)
        return "/" + path.strip("/") if path.strip("/") else ""

    def _open(self, path, mode="rb", **options):
        if "a" in mode:
            raise NotImplementedError("objects cannot be appended to")
        return super()._open(path, mode=mode, **options)


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads, writes, lists and deletes objects."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _parse(self) -> tuple[str, str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        return bucket, urllib.parse.unquote(name.removeprefix("/")), dict(urllib.parse.parse_qsl(url.query))

    def _meta(self, key: str) -> dict[str, str]:
        file = Files.store[key]
        return {
            "name": key.split("/", 2)[2],
            "size": str(len(file.getvalue())),
            "generation": str(id(file)),
            "timeCreated": "2025-01-01T00:00:00Z",
            "updated": "2025-01-01T00:00:00Z",
        }

    def do_GET(self):
        bucket, name, query = self._parse()
        if not name:
            first, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
            names = sorted(key.removeprefix(f"/{bucket}/") for key in Files.store if key.startswith(f"/{bucket}/"))
            names = [name for name in names if name.startswith(query.get("prefix", "")) and first <= name < end]
            self._reply(200, json.dumps({"items": [self._meta(f"/{bucket}/{name}") for name in names]}).encode())
            return
        key = f"/{bucket}/{name}"
        if key not in Files.store:
            self._reply(404)
            return
        content, meta = Files.store[key].getvalue(), self._meta(key)
        if query.get("alt") != "media":
            self._reply(200, json.dumps(meta).encode())
            return
        status, extra = 200, {"x_goog_generation": meta["generation"]}
        if "ifGenerationNotMatch" in query and query["ifGenerationNotMatch"] == meta["generation"]:
            self._reply(304, **extra)
            return
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            total = len(content)
            begin = int(first) if first else total - int(last)
            end = min(int(last) + 1, total) if first and last else total
            content, status = content[begin:end], 206
            extra["Content_Range"] = f"bytes {begin}-{end - 1}/{total}"
        self._reply(status, content, **extra)

    def do_POST(self):
        bucket, _, query = self._parse()
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key, wanted = f"/{bucket}/{query['name']}", query.get("ifGenerationMatch")
        found = self._meta(key)["generation"] if key in Files.store else "0"
        if wanted is not None and wanted != found:
            self._reply(412)
            return
        Files().pipe_file(key, content)
        self._reply(200, json.dumps(self._meta(key)).encode())

    def do_DELETE(self):
        bucket, name, _ = self._parse()
        found = Files.store.pop(f"/{bucket}/{name}", None)
        self._reply(204 if found else 404)


@contextlib.contextmanager
def object_store() -> Iterator[dict]:
    """gs:// leads to a dictionary of objects, which is yielded. To be entered before anything touches gs://."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    settings = {
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{server.server_port}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    }
    fsspec.register_implementation("gcs", Files, clobber=True)
    storage = types.SimpleNamespace(
        get_bucket=lambda name: types.SimpleNamespace()
    )  # of Orbax's question about folders
    cloud = types.ModuleType("google.cloud")
    cloud.storage = types.SimpleNamespace(Client=lambda: storage)
    try:
        with mock.patch.dict(os.environ, settings), mock.patch.dict(sys.modules, {"google.cloud": cloud}):
            yield Files.store
    finally:
        server.shutdown()
