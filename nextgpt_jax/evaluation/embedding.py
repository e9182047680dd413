"""Media inside an HTML file, as data: URLs, within a budget of bytes."""

import base64
import html
import io
import os
import pathlib
from typing import Any

from PIL import Image

from nextgpt_jax.errors import UserError, printable
from nextgpt_jax.files import format_size
from nextgpt_jax.media import read_image

_SIDE = 256  # pixels of a preview
_LARGEST = 4 << 20  # bytes of a video or a sound
_PLAYERS = {
    **dict.fromkeys((".mp4", ".m4v", ".mov"), ("video", "video/mp4")),
    ".webm": ("video", "video/webm"),
    ".wav": ("audio", "audio/wav"),
    ".mp3": ("audio", "audio/mpeg"),
    ".flac": ("audio", "audio/flac"),
    ".ogg": ("audio", "audio/ogg"),
    ".m4a": ("audio", "audio/mp4"),
}


def escape(text: str) -> str:
    """A text as HTML."""
    return html.escape(printable(text))


class Embedder:
    """Makes HTML of files: previews of images, players of videos and sounds; their names, where the budget is spent."""

    def __init__(self, budget: int = 40 << 20):
        """
        Args:
          budget: bytes of all media together.
        """
        self._left = budget

    def __call__(self, file: os.PathLike[str]) -> str:
        """The HTML of a file. One that cannot be shown is named."""
        try:
            path = pathlib.Path(file)
            player, kind = _PLAYERS.get(path.suffix.lower(), ("", ""))
            content, size = _content(path) if player else _preview(path), path.stat().st_size
        except (OSError, ValueError, UserError):
            return _named(file, "cannot be shown")
        if content is None or len(content) > self._left:
            return _named(path, f"{format_size(size)}, not embedded")
        self._left -= len(content)
        if player:
            return f'<{player} controls preload="metadata" src="{_url(kind, content)}"></{player}>'
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        return f'<img alt="{escape(path.name)}" src="{_url(kind, content)}">'


def _named(file: Any, reason: str) -> str:
    return f"<code>{escape(getattr(file, 'name', str(file)))}</code> ({reason})"


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _content(path: pathlib.Path) -> bytes | None:
    return path.read_bytes() if path.stat().st_size <= _LARGEST else None


def _preview(path: pathlib.Path) -> bytes:
    """A small one as it is, for its pixels count; of others a JPEG."""
    image = Image.fromarray(read_image(path))
    small, encoded = max(image.size) <= _SIDE, io.BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(encoded, "PNG" if small and image.width * image.height <= 1 << 14 else "JPEG", quality=88)
    return encoded.getvalue()
