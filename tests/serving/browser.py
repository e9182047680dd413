"""The chat page in headless Chromium, driven by playwright, on the keypad model."""

import contextlib
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Iterator

import fastapi
import uvicorn
from playwright import sync_api as playwright

from configs.keypad import get_config
from examples.keypad.exhibits import judged
from examples.keypad.things import Thing
from nextgpt_jax.cli.infer import load_engine
from nextgpt_jax.config import ServingConfig
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.serving.batcher import Batcher
from nextgpt_jax.serving.page import add_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def served() -> Iterator[tuple[Batcher, str]]:
    """A batcher, and the address of an app with the page on it, which runs in another thread."""
    with Batcher(load_engine(get_config(), ""), ServingConfig(rows=2)) as batcher:
        app = fastapi.FastAPI()
        page = add_page(app, batcher)
        folder = os.environ["GRADIO_TEMP_DIR"]
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait(lambda: server.started)
            host, port = server.servers[0].sockets[0].getsockname()
            yield batcher, f"http://{host}:{port}"
        finally:
            server.should_exit = True
            page.close()
            thread.join()
        assert not os.path.exists(folder)


@contextlib.contextmanager
def browsing() -> Iterator[playwright.Browser]:
    """A headless browser."""
    with playwright.sync_playwright() as started:
        with contextlib.closing(started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])) as browser:
            yield browser


def wait(condition, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


class Chat:
    """The page in a browser, which reaches nothing but the server."""

    def __init__(self, page, address: str):
        self.page, self.problems = page, []
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.problems.append(f"{error}"))
        page.on("console", self._note)
        page.on("request", lambda request: self._check(request.url, address))
        page.goto(f"{address}/chat")
        page.wait_for_selector("#box textarea")

    def _note(self, message) -> None:
        if message.type == "error" and not message.location["url"].endswith("/favicon.ico"):  # which the app has not
            self.problems.append(f"{message.text} {message.location}")

    def _check(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.problems.append(f"asked another server: {url}")

    def choose(self, label: str, value: str) -> None:
        """Chooses a value of a dropdown."""
        self.page.get_by_label(label, exact=True).click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def begin(self, text: str, *files) -> None:
        if files:
            self.page.set_input_files("#box input[type=file]", [str(file) for file in files])
            self.page.wait_for_function(
                "n => document.querySelectorAll('#box .thumbnail-item').length == n", arg=len(files)
            )
        self.page.fill("#box textarea", text)
        self.page.press("#box textarea", "Enter")

    def refused(self, line: str, text: str, *files) -> None:
        """Sends a message that is answered with a line of error."""
        self.begin(text, *files)
        playwright.expect(self.page.locator("#notice")).to_have_text(line)
        playwright.expect(self.page.locator("#box .stop-button")).to_have_count(0)

    def ask(self, text: str, *files):
        """Sends a message. The answer: the element of the last message."""
        count = self.page.locator("#chat .bot").count()
        self.begin(text, *files)
        playwright.expect(self.page.locator("#chat .bot")).not_to_have_count(count, timeout=60_000)
        playwright.expect(self.page.locator("#box .stop-button")).to_have_count(0, timeout=60_000)
        return self.page.locator("#chat .bot").last

    def thing(self, modality: str, element, folder: pathlib.Path) -> Thing | None:
        """What the judge sees in the file that an element plays."""
        path = folder / f"made{MODALITIES[modality].suffix}"
        content = "async url => Array.from(new Uint8Array(await (await fetch(url)).arrayBuffer()))"
        path.write_bytes(bytes(self.page.evaluate(content, element.first.get_attribute("src"))))
        return judged(modality, path)

    def notice(self) -> str:
        return self.page.inner_text("#notice").strip() if self.page.locator("#notice").count() else ""
