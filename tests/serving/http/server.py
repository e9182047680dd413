"""A server in a thread, on 127.0.0.1."""

import contextlib
import threading
from collections.abc import Iterator

from nextgpt_jax.serving.batcher import Batcher
from nextgpt_jax.serving.http.app import make_app
from nextgpt_jax.serving.http.run import listen
from nextgpt_jax.serving.http.settings import Settings

KEY = "a key"


@contextlib.contextmanager
def serving(batcher: Batcher, encoder: str = "", **settings) -> Iterator[str]:
    """The address of a server with these settings. The batcher is closed with it."""
    import uvicorn

    app = make_app(batcher, Settings(name="keypad", **settings), encoder=encoder)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
