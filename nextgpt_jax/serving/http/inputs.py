"""The media of a request as temporary files: from data: URLs, forms, files of this server, and public addresses."""

import base64
import binascii
import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from starlette.datastructures import UploadFile

from nextgpt_jax.errors import UserError
from nextgpt_jax.serving.http import remote
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.schemas import URL_PARTS, InputAudio, Part
from nextgpt_jax.serving.http.settings import Settings
from nextgpt_jax.serving.http.store import FileStore

FILES = "/files/"  # where generated media are fetched
_BLOCK = 1 << 20  # characters of base64 that are decoded at once: other threads go on in between
_ANY = "application/octet-stream"
_ARRAYS = ("image/", "application/x-npy", _ANY)
_TYPES = {  # how media types begin, by modality
    "image": ("image/",),
    "video": ("video/", "image/", "application/mxf"),
    "audio": ("audio/", "video/", "application/ogg"),
    "depth": _ARRAYS,
    "thermal": _ARRAYS,
    "imu": ("text/csv", "application/x-npy", _ANY),
}
_SUFFIXES = {"text/csv": ".csv", "application/x-npy": ".npy", _ANY: ".npy"}  # others are told by content


class Inputs:
    """The media of one request. Paths of the server are never read."""

    def __init__(self, store: FileStore, settings: Settings, base_url: str, uploads: Mapping[str, UploadFile]):
        """
        Args:
          base_url: of this server, as the client sees it, without a slash at the end.
          uploads: files of the form, by name.
        """
        self._store, self._settings, self._base_url, self._uploads = store, settings, base_url, uploads
        self._labels: dict[pathlib.Path, str] = {}

    def __enter__(self) -> "Inputs":
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._labels:
            path.unlink(missing_ok=True)
        for file in self._uploads.values():
            file.file.close()

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Errors in the body name the place of a medium in the request, not its temporary file."""
        try:
            yield
        except UserError as error:
            message = str(error)
            for path, label in self._labels.items():
                message = message.replace(str(path), label)
            raise ApiError(message, code="invalid_value") from None

    def read(self, part: Part, label: str) -> tuple[str, pathlib.Path]:
        """The modality and the file of a medium.

        Args:
          label: its place in the request, for error messages.

        Raises:
          ApiError: it cannot be had.
        """
        if len(self._labels) >= self._settings.max_inputs:
            raise ApiError(f"{label}: a request has at most {self._settings.max_inputs} media", param=label)
        if part.type == "input_audio":
            assert part.input_audio
            return "audio", self._sound(part.input_audio, label)
        modality = URL_PARTS[part.type]
        url = getattr(part, part.type).url
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return modality, self._data(url, modality, label)
        if scheme == "upload":
            return modality, self.upload(url[len("upload:") :], modality, label)
        if url.startswith(own := self._base_url + FILES):
            return modality, self._own(url[len(own) :], label)
        if scheme in ("http", "https"):
            return modality, self._remote(url, modality, label)
        raise ApiError(f"{label}: give a data: URL, such as data:image/png;base64,...", param=label, code="invalid_url")

    def upload(self, name: str, modality: str, label: str) -> pathlib.Path:
        """The file of a form with this name. Raises ApiError."""
        if (file := self._uploads.get(name)) is None:
            raise ApiError(f"{label}: the form has no file {name!r}", param=label, code="invalid_url")
        path = self._path(file.content_type or _ANY, modality, label, any_type=True)
        file.file.seek(0)
        with path.open("wb") as out:
            shutil.copyfileobj(file.file, out, _BLOCK)
        return path

    def _path(self, kind: str, modality: str, label: str, any_type: bool = False) -> pathlib.Path:
        """A new file for a medium of a media type. `any_type`: files of an unnamed type are told by their content."""
        kind = kind.partition(";")[0].strip().lower()
        if not kind.startswith(_TYPES[modality]) and not (any_type and kind == _ANY):
            raise ApiError(f"{label}: {kind or 'nothing'} is no type of {modality}", param=label, code="invalid_media")
        path = self._store.temporary(_SUFFIXES.get(kind, ""))
        self._labels[path] = label
        return path

    def _data(self, url: str, modality: str, label: str) -> pathlib.Path:
        comma = url.find(",")
        kind, *parameters = url[len("data:") : max(comma, 0)].split(";")
        if comma < 0 or "base64" not in (p.strip().lower() for p in parameters):
            raise ApiError(f"{label}: give data:TYPE;base64,DATA", param=label, code="invalid_url")
        path = self._path(kind, modality, label)
        if "%" in url:
            return _decode(unquote(url[comma + 1 :]), path, label)
        return _decode(url, path, label, comma + 1)

    def _sound(self, audio: InputAudio, label: str) -> pathlib.Path:
        return _decode(audio.data, self._path(f"audio/{audio.format or 'wav'}", "audio", label), label)

    def _own(self, name: str, label: str) -> pathlib.Path:
        if (file := self._store.get(name)) is None:
            raise ApiError(f"{label}: there is no such file, or no longer", param=label, code="invalid_url")
        path = self._store.temporary(file.path.suffix)
        self._labels[path] = label
        try:
            shutil.copyfile(file.path, path)
        except FileNotFoundError:  # it has just expired
            raise ApiError(f"{label}: there is no such file, or no longer", code="invalid_url") from None
        return path

    def _remote(self, url: str, modality: str, label: str) -> pathlib.Path:
        if not self._settings.allow_urls:
            host = urlsplit(url).hostname if "[" not in url else ""
            message = f"{label}: this server fetches nothing{f' from {host}' if host else ''}: give a data: URL"
            raise ApiError(message, param=label, code="invalid_url")
        path = self._store.temporary("")
        self._labels[path] = label
        limits = {"max_bytes": self._settings.max_upload, "seconds": self._settings.url_seconds}
        kind = remote.fetch(url, path, **limits)
        named = self._path(kind or _ANY, modality, label, any_type=True)
        path.rename(named)
        return named


def _decode(data: str, path: pathlib.Path, label: str, start: int = 0) -> pathlib.Path:
    """Writes base64, from `start` on, to a file. It is not copied as a whole, which would hold up other threads."""
    data = data.rstrip()
    try:
        with path.open("wb") as file:
            for at in range(start, len(data), _BLOCK):
                file.write(base64.b64decode(data[at : at + _BLOCK], validate=True))
    except (binascii.Error, ValueError):
        raise ApiError(f"{label}: the data are no base64", param=label, code="invalid_media") from None
    return path
