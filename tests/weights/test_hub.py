"""Downloads from a hub: a small server on this machine that answers as the Hugging Face Hub does."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from nextgpt_jax.weights.hub import is_hub_id, wanted_files

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/tiny-llama"
NOBODY = "http://127.0.0.1:9"  # refuses connections


@pytest.fixture
def hub(tiny_root):
    """The address of a hub with one repository, and the paths that were asked for."""
    files = {f.name: f.read_bytes() for f in (tiny_root / "hub" / "llm").iterdir()}
    files["pytorch_model.bin"] = b"the same weights once more, which nobody needs"
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes, **headers: str):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            asked.append((self.command, self.path))
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                    for name, body in files.items()
                ]
                return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            if path.startswith(f"/api/models/{REPOSITORY}"):
                info = {"id": REPOSITORY, "sha": REVISION, "siblings": [{"rfilename": name} for name in files]}
                return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            name = path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/")
            if name not in files:
                return self.answer(404, b"", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            body, size = files[name][begin:], len(files[name])
            where = {"Content_Range": f"bytes {begin}-{size - 1}/{size}"} if begin else {}
            self.answer(206 if begin else 200, body, ETag=etag, X_Repo_Commit=REVISION, **where)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def run(home: pathlib.Path, endpoint: str, *argv: str) -> subprocess.CompletedProcess:
    """A Python process with a hub cache in `home`."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment)


def convert(home: pathlib.Path, endpoint: str, *argv: str) -> subprocess.CompletedProcess:
    return run(home, endpoint, "-m", "convert", "llama", *argv)


def test_a_repository_is_downloaded_and_its_revision_recorded(hub, tmp_path):
    endpoint, asked = hub
    done = convert(tmp_path / "home", endpoint, f"--source={REPOSITORY}", f"--output={tmp_path / 'jax'}")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "jax" / "nextgpt_jax.json").read_text())
    assert (manifest["source"], manifest["revision"]) == (REPOSITORY, REVISION)
    assert (tmp_path / "jax" / "tokenizer.json").is_file()
    assert not any("pytorch_model.bin" in path for _, path in asked)

    asked.clear()  # what is there is not downloaded again
    done = convert(tmp_path / "home", endpoint, f"--source={REPOSITORY}", f"--output={tmp_path / 'again'}")
    assert done.returncode == 0, done.stderr
    assert not [path for command, path in asked if command == "GET" and "/resolve/" in path]

    for name in (REPOSITORY, f"{REPOSITORY}@{REVISION}"):  # without a connection, from the cache
        done = convert(tmp_path / "home", NOBODY, f"--source={name}", f"--output={tmp_path / name.replace('/', '-')}")
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / name.replace("/", "-") / "nextgpt_jax.json").read_text())
        assert (manifest["source"], manifest["revision"]) == (REPOSITORY, REVISION)


def test_repositories_that_are_not_there(hub, tmp_path):
    endpoint, _ = hub
    done = convert(tmp_path / "home", endpoint, "--source=someone/else", f"--output={tmp_path / 'jax'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "--source: there is no folder someone/else, and no such repository on the hub" in done.stderr
    assert not (tmp_path / "jax").exists()
    done = convert(tmp_path / "home", NOBODY, f"--source={REPOSITORY}", f"--output={tmp_path / 'jax'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the hub cannot be reached" in done.stderr


LOAD = """
import pathlib, sys
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.load import load_system
from tests import tiny

config = tiny.experiment(pathlib.Path(sys.argv[1]), "stage1", kinds=tiny.PICTURES).model
config.llm = sys.argv[2]
try:
    system = load_system(config, decoder_parts=())
except UserError as error:
    sys.exit(f"error: {error}")
print(system.model.config.llm.hidden_size, len(system.tokenizer("draw a seven")["input_ids"]))
"""


def test_a_part_of_a_model_may_be_a_repository(hub, tiny_root, tmp_path):
    """As infer.py and train.py load it; afterwards without a connection."""
    endpoint, _ = hub

    def load(home: str, where: str, name: str) -> subprocess.CompletedProcess:
        return run(tmp_path / home, where, "-c", LOAD, str(tiny_root), name)

    for where, name in ((endpoint, REPOSITORY), (NOBODY, REPOSITORY), (NOBODY, f"{REPOSITORY}@{REVISION}")):
        done = load("home", where, name)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "32 5\n"
    done = load("empty", NOBODY, REPOSITORY)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: model.llm: there is no folder {REPOSITORY}, and the hub cannot be reached")


def test_what_is_downloaded():
    names = ["README.md", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json", "pytorch_model.bin", "unet/config.json", "unet/model.bin",
             "unet/model.fp16.bin", "tokenizer.model", "img/cat.png"]  # fmt: skip
    assert wanted_files(names) == sorted(set(names) - {"pytorch_model.bin", "unet/model.fp16.bin", "img/cat.png"})
    companions = ["README.md", "config.json", "model.safetensors.index.json", "tokenizer.model", "unet/config.json"]
    assert wanted_files(names, weights=False) == companions


def test_hub_ids_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "owner/name-1.5@main", "a/b@refs/pr/1", "weights/llm"):
        assert is_hub_id(name), name
    (tmp_path / "weights").mkdir()  # now the same name is a path
    for name in ("weights/llm", "./weights/llm", "/weights/llm", "name", "a/b/c", "owner/name@", ""):
        assert not is_hub_id(name), name
