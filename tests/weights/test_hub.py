"""Downloads from a hub: a small server on this machine that answers as the Hugging Face Hub does."""

import hashlib
import http.server
import json
import pathlib
import threading

import huggingface_hub
import pytest
from huggingface_hub import constants

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import assemble
from nextgpt_jax.weights.hub import find, is_hub_id
from nextgpt_jax.weights.load import load_system
from tests import tiny
from tests.convert.commands import convert, refused

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY, PIPELINE = "someone/tiny-llama", "someone/tiny-diffusion"
CACHED = f"models--{REPOSITORY.replace('/', '--')}/snapshots/{REVISION}"
NOBODY = "http://127.0.0.1:9"  # refuses connections
UNNEEDED = ("pytorch_model.bin", "v1-5-pruned.ckpt", "original/consolidated.00.pth", "safety_checker/model.safetensors")


@pytest.fixture
def hub(tiny_root):
    """The address of a hub with two repositories, and the paths that were asked for."""
    repositories = {}
    for repository, folder in ((REPOSITORY, "llm"), (PIPELINE, "stable-diffusion")):
        root = tiny_root / "hub" / folder
        repositories[repository] = {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}
        for name in UNNEEDED:
            repositories[repository][name] = b"which nobody needs"
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
            repository = next((name for name in repositories if f"/{name}/" in f"{path}/"), "")
            files = repositories.get(repository, {})
            if not files:
                return self.answer(404, b"", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            if path.startswith(f"/api/models/{repository}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                    for name, body in files.items()
                ]
                return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            if path.startswith(f"/api/models/{repository}"):
                info = {"id": repository, "sha": REVISION, "siblings": [{"rfilename": name} for name in files]}
                return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            name = path.removeprefix(f"/{repository}/resolve/{REVISION}/")
            if name not in files:
                return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
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


@pytest.fixture
def connect(monkeypatch):
    """Makes huggingface_hub use a hub and a cache of files, as HF_ENDPOINT and HF_HOME do in a new process."""

    def use(endpoint: str, home: pathlib.Path) -> None:
        huggingface_hub.close_session()
        changes = {"ENDPOINT": endpoint, "HF_HUB_CACHE": str(home), "HF_HUB_DISABLE_XET": True}
        changes["HUGGINGFACE_CO_URL_TEMPLATE"] = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in changes.items():
            monkeypatch.setattr(constants, name, value)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield use
    huggingface_hub.close_session()


def downloaded(asked: list) -> set[str]:
    return {path.split(REVISION + "/")[1] for command, path in asked if command == "GET" and "/resolve/" in path}


def test_a_repository_is_downloaded_and_its_revision_recorded(hub, connect, tiny_root, tmp_path):
    endpoint, asked = hub
    connect(endpoint, tmp_path / "home")
    convert("llama", f"--source={REPOSITORY}", f"--output={tmp_path / 'jax'}")
    manifest = json.loads((tmp_path / "jax" / "nextgpt_jax.json").read_text())
    assert (manifest["source"], manifest["revision"]) == (REPOSITORY, REVISION)
    assert (tmp_path / "jax" / "tokenizer.json").is_file()
    assert downloaded(asked) == {f.name for f in (tiny_root / "hub" / "llm").iterdir()}

    asked.clear()  # what is there is not downloaded again
    convert("llama", f"--source={REPOSITORY}", f"--output={tmp_path / 'again'}")
    assert not downloaded(asked)

    connect(NOBODY, tmp_path / "home")
    for name in (REPOSITORY, f"{REPOSITORY}@{REVISION}"):  # without a connection, from the cache
        output = tmp_path / name.replace("/", "-")
        convert("llama", f"--source={name}", f"--output={output}")
        manifest = json.loads((output / "nextgpt_jax.json").read_text())
        assert (manifest["source"], manifest["revision"]) == (REPOSITORY, REVISION)


def test_of_a_pipeline_only_its_parts_are_downloaded(hub, connect, tiny_root, tmp_path):
    endpoint, asked = hub
    connect(endpoint, tmp_path / "home")
    found = find(PIPELINE, "decoder")
    assert found.manifest_entries() == {"source": PIPELINE, "revision": REVISION}
    root = tiny_root / "hub" / "stable-diffusion"
    assert downloaded(asked) == {str(f.relative_to(root)) for f in root.rglob("*") if f.is_file()}


def test_of_an_adapters_base_no_weights_are_downloaded(hub, connect, tiny_root, tmp_path):
    endpoint, asked = hub
    connect(endpoint, tmp_path / "home")
    assert (find(REPOSITORY, "llm", weights=False).path / "config.json").is_file()
    assert downloaded(asked) == {f.name for f in (tiny_root / "hub" / "llm").iterdir()} - {"model.safetensors"}


def test_repositories_that_are_not_there(hub, connect, tmp_path):
    endpoint, _ = hub
    connect(endpoint, tmp_path / "home")
    message = refused("llama", "--source=someone/else", f"--output={tmp_path / 'jax'}")
    assert "--source: there is no folder someone/else, and no such repository on the hub" in message
    connect(NOBODY, tmp_path / "home")
    message = refused("llama", f"--source={REPOSITORY}", f"--output={tmp_path / 'jax'}")
    assert "the hub cannot be reached" in message


def test_a_part_of_a_model_may_be_a_repository(hub, connect, tiny_root, tmp_path):
    """As infer.py and train.py load it; afterwards without a connection."""
    endpoint, _ = hub
    config = tiny.experiment(tiny_root, "stage1", kinds=tiny.PICTURES).model

    def load(home: str, where: str, name: str):
        connect(where, tmp_path / home)
        config.llm = name
        return load_system(config, decoder_parts=())

    connect(endpoint, tmp_path / "home")
    config.llm = REPOSITORY
    assert assemble.resolve_parts(config).llm == str(tmp_path / "home" / CACHED)
    system = load("home", NOBODY, REPOSITORY)
    assert system.model.config.llm.hidden_size == 32
    assert len(system.tokenizer("draw a seven")["input_ids"]) == 5
    config.llm = f"{REPOSITORY}@{REVISION}"
    assert assemble.resolve_parts(config).llm == str(tmp_path / "home" / CACHED)
    with pytest.raises(UserError) as caught:
        load("empty", NOBODY, REPOSITORY)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"model.llm: there is no folder {REPOSITORY}, and the hub cannot be reached")


def test_hub_ids_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "owner/name-1.5@main", "a/b@refs/pr/1", "weights/llm"):
        assert is_hub_id(name), name
    (tmp_path / "weights").mkdir()  # now the same name is a path
    for name in ("weights/llm", "./weights/llm", "/weights/llm", "name", "a/b/c", "owner/name@", ""):
        assert not is_hub_id(name), name
