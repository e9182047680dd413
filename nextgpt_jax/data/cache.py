"""What was computed from data files, kept in the cache folder: arrays and notes, in one file per source and purpose.

A file is only used if its key is that of now: of the source as it is (`fingerprint.identity`), of the settings and of
the code. One that is damaged, or of another key, is replaced. Of several processes that need the same, one computes it
and the others wait for it, as long as it lives; without a folder that can be written, all compute it.
"""

import contextlib
import functools
import hashlib
import json
import mmap
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write

_MAGIC = b"nextgpt-jax cache 1"
_ALIGN = 64
_CHUNK = 1 << 22
_MAPPED = 1 << 23  # bytes: what is smaller is read, as each mapping keeps its file open
MINIMUM = 10_000  # records: what is computed from fewer is not kept


def cache_folder() -> pathlib.Path:
    """Where what was computed from data files is kept: $NEXTGPT_CACHE, or nextgpt-jax in the user's cache folder."""
    if own := os.environ.get("NEXTGPT_CACHE"):
        return pathlib.Path(own)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "nextgpt-jax"


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name, and notes. Those of a large cache file are mapped into memory; of any, the name is pickled.

    Attributes:
      notes: what JSON can write.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], notes: Any = None, file: pathlib.Path | None = None):
        """
        Args:
          file: the cache file that they are in; None: in memory.
        """
        self._arrays, self.notes, self._file = dict(arrays), notes, file

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __getstate__(self) -> dict[str, Any]:
        return {"_file": self._file} if self._file else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(_map(state["_file"], whole=False)[1].__dict__ if len(state) == 1 else state)


class Request(NamedTuple):
    """What is wanted of one source.

    Attributes:
      source: the data file or folder.
      identity: of it now; empty: nothing is kept.
      settings: that the result depends on, as JSON can write them.
    """

    source: str
    identity: str
    settings: tuple[Any, ...] = ()

    def file(self, purpose: str) -> pathlib.Path:
        """Where it is kept."""
        return cache_folder() / purpose / f"{_digest([os.path.abspath(self.source), json.dumps(self.settings)])}.bin"

    @property
    def key(self) -> str:
        """Under which it may be used."""
        return f"{self.identity} {_code()} {sys.version_info[:2]} {np.__version__}"


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()[:32]


def kept(purpose: str, requests: Sequence[Request], build: Callable[[list[Request]], list[Arrays]]) -> list[Arrays]:
    """What was kept, or is computed and kept now.

    Args:
      purpose: the name of a folder.
      requests: of different sources or settings; repetitions are computed once.
      build: computes what some of the requests want. What has fewer than MINIMUM entries is not kept.
    """
    found: dict[Request, Arrays] = {}

    def look() -> list[Request]:
        for request in dict.fromkeys(requests):
            if request.identity and request not in found and (arrays := _load(purpose, request)) is not None:
                found[request] = arrays
        return [request for request in dict.fromkeys(requests) if request not in found]

    if look():
        files = sorted({str(request.file(purpose)) for request in requests if request.identity})
        with alone(cache_folder() / purpose / _digest(files)) if files else contextlib.nullcontext():
            missing = look()  # fewer, if another process has made some meanwhile
            for request, arrays in zip(missing, build(missing) if missing else [], strict=True):
                found[request] = _save(purpose, request, arrays) if request.identity else arrays
    return [found[request] for request in requests]


@contextlib.contextmanager
def alone(file: pathlib.Path) -> Iterator[None]:
    """Waits until no other process makes this file of the cache, and lets none begin while the body runs. The system
    lets go of the lock of a process that dies."""
    try:
        import fcntl

        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _load(purpose: str, request: Request) -> Arrays | None:
    """What is kept under this key; None: nothing."""
    try:
        key, arrays = _map(request.file(purpose), whole=True)
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
        return None
    return arrays if key == request.key else None


def _save(purpose: str, request: Request, arrays: Arrays) -> Arrays:
    """Writes arrays that are large, if that is possible, and maps them."""
    if max((len(array) for array in arrays.values()), default=0) < MINIMUM:
        return arrays
    with contextlib.suppress(UserError):  # no space, or no folder that can be written
        with atomic_write(request.file(purpose)) as temporary:
            _write(temporary, request.key, arrays)
        return _load(purpose, request) or arrays
    return arrays


def _write(path: pathlib.Path, key: str, arrays: Arrays) -> None:
    places, at = [], 0
    for name, array in arrays.items():
        places.append([name, array.dtype.str, array.shape, at])
        at += -(-array.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"key": key, "notes": arrays.notes, "arrays": places, "size": at}).encode()
    header += b" " * (-(len(header) + 64) % _ALIGN)
    check = zlib.crc32(header)
    with path.open("wb") as file:
        file.write(bytes(64) + header)
        for array in arrays.values():
            content = memoryview(np.ascontiguousarray(array)).cast("B") if array.size else memoryview(b"")
            for piece in (content, bytes(-len(content) % _ALIGN)):
                check = zlib.crc32(piece, check)
                file.write(piece)
        file.seek(0)
        file.write(b"%s %d %d" % (_MAGIC, len(header), check))


def _map(path: pathlib.Path, whole: bool) -> tuple[str, Arrays]:
    """The key and the arrays of a cache file.

    Args:
      whole: checks that nothing of it has changed.

    Raises:
      OSError, ValueError, KeyError, TypeError: it is no such file, or damaged.
    """
    with path.open("rb") as file:
        magic, length, check = file.read(64).rstrip(b"\0").rsplit(b" ", 2)
        if magic != _MAGIC:
            raise ValueError
        content = file.read(int(length))
        header = json.loads(content)
        if os.fstat(file.fileno()).st_size != 64 + int(length) + header["size"]:
            raise ValueError
        if whole:
            found = zlib.crc32(content)
            while piece := file.read(_CHUNK):
                found = zlib.crc32(piece, found)
            if found != int(check):
                raise ValueError
        file.seek(0)
        if os.fstat(file.fileno()).st_size < _MAPPED:
            mapped: Any = file.read()
        else:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {}
    for name, kind, shape, at in header["arrays"]:
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(mapped, np.dtype(kind), count, 64 + int(length) + at).reshape(shape)
    return header["key"], Arrays(arrays, header["notes"], path)


@functools.cache
def _code() -> str:
    """Of the code that reads records and makes conversations and their ids of them: another version may see more."""
    package = pathlib.Path(__file__).parents[1]
    files = [*(package / "data").glob("*.py"), *(package / f"{name}.py" for name in _MODULES)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()


_MODULES = ("json_files", "modalities", "prompts", "templates")
