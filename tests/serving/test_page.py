"""The chat page as a server gives it to a browser; test_page_browser.py has the browser."""

import asyncio
import contextlib
import os
import pathlib
import re
import types

import pytest

from nextgpt_jax.serving import page
from tests.serving.script import Script

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'nextgpt-jax[demo]'")
fastapi = pytest.importorskip("fastapi")
testclient = pytest.importorskip("fastapi.testclient")


@contextlib.contextmanager
def served(**options):
    """A client of an app with the page. The page's folder is there as long as the app runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        app = fastapi.FastAPI()
        app.get("/v1/models")(lambda: "models")
        page.add_page(app, Script(), **options)
        folder = pathlib.Path(os.environ["GRADIO_TEMP_DIR"])
        with testclient.TestClient(app) as client:
            yield client
            assert folder.is_dir()
        assert not folder.exists()


@pytest.fixture(scope="module")
def client():
    with served() as client:
        yield client


def test_the_page_names_no_other_server(client):
    config = client.get("/chat/config").json()
    assert config["title"] == "NExT-GPT" and not config["analytics_enabled"] and not config["footer_links"]
    style = client.get("/chat/theme.css").text
    assert "font-face" in style and not re.search(r"url\(['\"]?(http|//)|@import", style)
    assert client.get("/v1/models").json() == "models"


def test_the_page_offers_what_the_model_has(client):
    components = {c["props"].get("elem_id"): c["props"] for c in client.get("/chat/config").json()["components"]}
    assert [value for _, value in components["media"]["choices"]] == ["image", "video", "audio"]
    assert [value for _, value in components["kind"]["choices"]] == ["", "image", "video", "audio"]
    assert components["tokens"]["value"] == 96


def test_files_of_the_server_are_not_read(client):
    upload = client.post("/chat/gradio_api/upload", files={"files": ("a.png", b"picture")}).json()[0]
    assert client.get(f"/chat/gradio_api/file={upload}").content == b"picture"
    assert client.get("/chat/gradio_api/file=/etc/passwd").status_code == 403
    assert client.get(f"/chat/gradio_api/file={upload}/../../../../etc/passwd").status_code in (403, 404)
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [None, 0, {"text": "hi", "files": [file]}], "fn_index": 0, "session_hash": "a"}
    assert client.post("/chat/gradio_api/queue/join", json=body).status_code == 403


def test_keys_and_limits():
    with served(keys=["secret", "other"], max_upload=1000) as client:
        assert client.get("/chat/config").status_code == 401
        assert client.post("/chat/gradio_api/upload", files={"files": ("a.png", b"a")}).status_code == 401
        assert client.post("/chat/login", data={"username": "me", "password": "secre"}).status_code == 400
        assert client.post("/chat/login", data={"username": "me", "password": "secret"}).status_code == 200
        assert client.get("/chat/config").status_code == 200
        assert client.post("/chat/gradio_api/upload", files={"files": ("a.png", b" " * 1001)}).status_code == 413


def test_a_page_that_outlived_its_conversation_says_so(tmp_path):
    """What is on the page is not what the model would remember."""
    from nextgpt_jax.serving.page_blocks import Sessions

    async def run():
        message = {"text": "and that one?", "files": []}
        options = ("auto", [], "", 0.6, 0, "", "", 0.0, 96, "")
        sending = Sessions(Script(), tmp_path).send(None, 4, message, *options, types.SimpleNamespace(session_hash="a"))
        return [changes async for changes in sending][-1]

    _, notice, box, *_ = asyncio.run(run())
    assert notice["value"] == "this conversation has expired: start a new one" and notice["visible"]
    assert box["value"]["text"] == "and that one?" and box["submit_btn"]
