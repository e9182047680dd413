"""Runs the app until a signal, then finishes what runs."""

import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nextgpt_jax.errors import UserError, first_line

_KEEP_ALIVE = 75  # seconds; longer than clients keep idle connections, or a request may meet the end of its connection


class Server(uvicorn.Server):
    """A server that is not ready from the moment of the signal on, and whose process ends well after it."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called at a signal; at a second SIGINT nothing is waited for."""
        self.config.app.state.services.ready = False  # type: ignore[union-attr]
        if page := getattr(self.config.app.state, "page", None):  # type: ignore[union-attr]
            page.close()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def serve(
    app: FastAPI, listening: socket.socket, *, drain_seconds: float | None = None, access_log: bool = True
) -> None:
    """Serves on a socket until SIGTERM or SIGINT.

    Args:
      drain_seconds: within which answers that have begun are finished; None: however long they take.
      access_log: write a line for each request.
    """
    config = uvicorn.Config(
        app,
        timeout_graceful_shutdown=None if drain_seconds is None else max(1, round(drain_seconds)),
        server_header=False,
        http="h11",  # which limits the headers of a request; httptools does not
        timeout_keep_alive=_KEEP_ALIVE,
        access_log=access_log,
    )
    host, port = listening.getsockname()[:2]
    print(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 takes a free one. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.set_inheritable(True)
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(f"cannot listen on {host}:{port}: {first_line(error)}") from None
    return listening
