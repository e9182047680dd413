"""The chat page: `add_page` adds it to a FastAPI app, `serve_page` serves it alone. Needs the extra `demo`."""

import asyncio
import contextlib
import hmac
import os
import pathlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from nextgpt_jax.errors import UserError
from nextgpt_jax.serving.batcher import Batcher

if TYPE_CHECKING:
    import fastapi

MAX_UPLOAD = 64_000_000

_STYLE = """
#chat .message img, #chat .message video {min-width: 128px; min-height: 128px; object-fit: contain}
#chat button[aria-label="Share"] {display: none}  /* on Hugging Face; Gradio has no option for this one */
#notice {color: var(--error-text-color, #b91c1c); padding: 0 var(--spacing-md)}
"""


class Page:
    """A page that was added to an app."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()

    def close(self) -> None:
        """Ends the connections that open pages hold, without which a server waits for them. In the event loop."""
        self.closing.set()


def add_page(
    app: "fastapi.FastAPI",
    batcher: Batcher,
    *,
    path: str = "/chat",
    keys: Sequence[str] = (),
    max_upload: int = MAX_UPLOAD,
    examples: Sequence[str] = (),
) -> Page:
    """Adds the chat page to an app. It loads nothing from other servers, and fetches nothing from them.

    One per process: the folder of its temporary files is set in the environment, as Gradio has it. It is deleted when
    the app shuts down; before, generated media are deleted an hour after their page was closed, uploads after a day.
    The page's `close`, also in `app.state.page`, is to be called when the server is told to stop.

    Args:
      path: of the page; at "/" it takes all paths that were not added to the app before.
      keys: one of these has to be given as the password; none: everybody may chat.
      max_upload: bytes of a file.
      examples: messages to begin with; (): one of each kind.

    Raises:
      UserError: Gradio is not installed.
    """
    check_installed()
    import gradio as gr
    from starlette.middleware import Middleware

    from nextgpt_jax.serving.page_blocks import make_blocks
    from nextgpt_jax.serving.page_guard import OnlyUploads

    folder = tempfile.TemporaryDirectory(prefix="nextgpt-page-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder.name

    @contextlib.asynccontextmanager
    async def lifespan(inner: "fastapi.FastAPI") -> AsyncIterator[None]:
        yield
        folder.cleanup()

    page = Page()
    blocks = make_blocks(batcher, pathlib.Path(folder.name), examples)
    guard = Middleware(OnlyUploads, folder=pathlib.Path(folder.name), closing=page.closing)
    gr.mount_gradio_app(
        app,
        blocks,
        path,
        app_kwargs={"lifespan": lifespan, "middleware": [guard]},
        auth=(lambda name, key: _is_one_of(key, keys)) if keys else None,
        auth_message="Give any name, and an API key of this server as the password." if keys else None,
        max_file_size=max_upload,
        allowed_paths=[],
        css=_STYLE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    blocks.has_launched = True  # only then are paths checked, which mounting forgets (6.31)
    app.state.page = page
    return page


def serve_page(
    batcher: Batcher, *, host: str = "127.0.0.1", port: int = 7860, keys: Sequence[str] = (), **options: Any
) -> None:
    """Serves the chat page alone until the process gets SIGINT or SIGTERM. `options` as in `add_page`.

    Raises:
      UserError: Gradio is not installed.
    """
    check_installed()
    import fastapi
    import uvicorn

    app = fastapi.FastAPI(openapi_url=None)
    page = add_page(app, batcher, path="/", keys=keys, **options)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            page.close()
            await super().shutdown(sockets)

    Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).run()


def check_installed() -> None:
    """Raises UserError unless Gradio, which brings FastAPI and uvicorn, can be imported."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs Gradio ({error}): pip install 'nextgpt-jax[demo]'") from None


def _is_one_of(key: str, keys: Sequence[str]) -> bool:
    """The time that it takes does not depend on how much of a key is right."""
    return any([hmac.compare_digest(key.encode("utf-8", "surrogateescape"), known.encode()) for known in keys])
