"""Which modality a file is of, by its content."""

import os
import pathlib

import av
import soundfile
from PIL import Image

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.media.heif import is_heic
from nextgpt_jax.media.image import MAX_PIXELS, open_image, quiet
from nextgpt_jax.media.streams import open_container

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # other formats have several pages, or sizes, of one picture


def recognize(path: str | os.PathLike) -> str:
    """The modality of a file: "image", "video" (animations too), "audio", or "imu" for a table.

    Gray images are images: whether they are depth or thermal images, no file says.

    Raises:
      UserError: it is none of these.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() == ".csv":
        return "imu"
    if path.suffix.lower() == ".npy":
        raise UserError(f"{path} may be depth, thermal or imu: say what it is")
    try:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty")
        if is_heic(path):
            return "image"
        return _picture(path) or _stream(path) or _sound(path) or _damaged_picture(path)
    except OSError as error:
        raise UserError(f"{path}: {first_line(error)}") from None


def _picture(path: pathlib.Path) -> str | None:
    try:
        with quiet(), Image.open(path) as image:
            return "video" if image.format in _ANIMATED and getattr(image, "is_animated", False) else "image"
    except Image.DecompressionBombError:
        return "image"
    except (OSError, ValueError, SyntaxError):
        return None


def _stream(path: pathlib.Path) -> str | None:
    try:
        with path.open("rb") as file, open_container(file) as container:
            cover = av.stream.Disposition.attached_pic
            if any(not stream.disposition & cover for stream in container.streams.video):
                return "video"
            return "audio" if container.streams.audio else None
    except ValueError:
        return None


def _sound(path: pathlib.Path) -> str | None:
    try:
        soundfile.info(str(path))
    except soundfile.SoundFileRuntimeError:
        return None
    return "audio"


def _damaged_picture(path: pathlib.Path) -> str:
    """Of a PNG whose metadata Pillow refuses, which `open_image` reads nonetheless."""
    try:
        with open_image(path, MAX_PIXELS):
            return "image"
    except UserError:
        raise UserError(f"{path} is no image, video or sound in a supported format") from None
