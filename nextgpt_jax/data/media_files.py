"""Where the media of records are: files, found in the usual places, or members of a tar and cells of a table."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

from nextgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EmbeddedMedium:
    """A medium inside another file.

    Attributes:
      file: that it is in.
      number: of its member or row there.
      suffix: of its kind of file: ".jpg".
      read: gives its bytes.
      label: gives its name inside the file, which may have to be read.
    """

    file: str
    number: int
    suffix: str
    read: Callable[[], bytes] = dataclasses.field(repr=False, compare=False)
    label: Callable[[], str] = dataclasses.field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.file}: {self.label()}"

    def __str__(self) -> str:
        return self.name


Source = pathlib.Path | EmbeddedMedium

SUFFIXES = {  # of media, by modality
    "image": ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "heic", "heif"),
    "video": ("mp4", "webm", "mkv", "avi", "mov", "m4v"),
    "audio": ("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac"),
}


def modality_of(name: str) -> str:
    """The modality of a file, by its suffix; empty: none."""
    suffix = pathlib.PurePosixPath(name).suffix.lower().removeprefix(".")
    return next((modality for modality, suffixes in SUFFIXES.items() if suffix in suffixes), "")


def resolve_media_path(path: pathlib.Path, modality: str) -> pathlib.Path:
    """`path` if it is a file, or else the same file in its modality's folder there (images/, videos/, audios/, ...), or
    in the folder of its shard, as img2dataset writes it (00131/001312382.jpg); of none, the second."""
    places = _places(path, modality)
    return pathlib.Path(next(filter(os.path.isfile, places), places[1]))


def resolved(medium: Source, modality: str) -> Source:
    """A medium, with the path of one that is a file as `resolve_media_path` finds it."""
    return medium if isinstance(medium, EmbeddedMedium) else resolve_media_path(medium, modality)


def media_exists(path: str | pathlib.Path, modality: str) -> bool:
    """Whether `resolve_media_path` finds a file."""
    return any(map(os.path.isfile, _places(path, modality)))


def _places(path: str | pathlib.Path, modality: str) -> tuple[str, str, str]:
    # Without pathlib, which would take most of the time that reading millions of records takes.
    folder, name = os.path.split(path)
    return str(path), os.path.join(folder, f"{modality}s", name), os.path.join(folder, name[:5], name)


@contextlib.contextmanager
def local_path(medium: Source) -> Iterator[pathlib.Path]:
    """The path of a medium as a file, which for one inside another file exists while the body runs.

    Raises:
      UserError: as the body, with the medium's name in place of that of the temporary file.
    """
    if isinstance(medium, pathlib.Path):
        yield medium
        return
    memory = "/dev/shm"
    folder = memory if os.access(memory, os.W_OK) else None
    with tempfile.NamedTemporaryFile(suffix=medium.suffix, dir=folder) as file:
        file.write(medium.read())
        file.flush()
        try:
            yield pathlib.Path(file.name)
        except UserError as error:
            raise UserError(str(error).replace(file.name, medium.name)) from None
