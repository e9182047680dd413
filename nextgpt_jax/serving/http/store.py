"""Generated media as files that can be fetched for a while, under names that cannot be guessed."""

import asyncio
import dataclasses
import pathlib
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of the store. `expires`: seconds since 1970."""

    name: str
    path: pathlib.Path
    size: int
    expires: float


class FileStore:
    """A temporary folder, which is removed with everything in it by `close`. Any thread may use it."""

    def __init__(self, seconds: float, max_bytes: int, clock: Callable[[], float] = time.time):
        self._seconds, self._max_bytes, self._clock = seconds, max_bytes, clock
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="nextgpt-serve-"))  # only this user can read it
        self._lock = threading.Lock()
        self._files: OrderedDict[str, StoredFile] = OrderedDict()  # oldest first

    def temporary(self, suffix: str) -> pathlib.Path:
        """A new path in the folder, for a file that the caller removes or adds."""
        return self._folder / f"{secrets.token_urlsafe(24)}{suffix}"

    def add(self, path: pathlib.Path) -> StoredFile:
        """Takes over a file at a path that `temporary` gave. The oldest files make room for it."""
        file = StoredFile(path.name, path, path.stat().st_size, self._clock() + self._seconds)
        with self._lock:
            self._files[file.name] = file
            while len(self._files) > 1 and sum(f.size for f in self._files.values()) > self._max_bytes:
                self._remove(next(iter(self._files)))
        return file

    def get(self, name: str) -> StoredFile | None:
        """The file of a name; None: there is none, or it has expired."""
        with self._lock:
            file = self._files.get(name)
        return file if file and file.expires > self._clock() else None

    def delete(self, name: str) -> None:
        with self._lock:
            if name in self._files:
                self._remove(name)

    def sweep(self) -> None:
        """Removes what has expired."""
        now = self._clock()
        with self._lock:
            for name in [file.name for file in self._files.values() if file.expires <= now]:
                self._remove(name)

    async def keep_sweeping(self) -> None:
        """Sweeps from time to time, until it is cancelled."""
        while True:
            await asyncio.sleep(min(60.0, self._seconds))
            self.sweep()

    def close(self) -> None:
        with self._lock:
            self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove(self, name: str) -> None:
        self._files.pop(name).path.unlink(missing_ok=True)
