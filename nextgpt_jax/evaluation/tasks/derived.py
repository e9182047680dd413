"""Inputs that are made from a dataset's files when they are first read, and kept in the cache folder: a part of a
video, the frames of a folder as a video, a sound with a gap."""

import hashlib
import os
import pathlib
import threading
from collections.abc import Callable

import numpy as np

from nextgpt_jax import media
from nextgpt_jax.data.cache import cache_folder
from nextgpt_jax.errors import UserError
from nextgpt_jax.media.video_decoding import MAX_FRAME_PIXELS, read_picked

MAX_FRAMES = 128  # of a part of a video; of longer ones every second, third, ... frame is kept
_MAKING = threading.Lock()


class Derived(os.PathLike[str]):
    """A path of a file that is made when the path is taken (`os.fspath`).

    Attributes:
      name: of the file.
    """

    def __init__(self, source: pathlib.Path, suffix: str, settings: str, make: Callable[[pathlib.Path], None]):
        """
        Args:
          source: the file or folder that it is made from.
          suffix: of the file.
          settings: what else the file depends on.
          make: writes it, atomically.
        """
        self.name = f"{source.stem}{suffix}"
        self._source, self._settings, self._make = source, settings, make

    def __str__(self) -> str:
        return str(self._path())

    def __repr__(self) -> str:
        return f"Derived({str(self)!r})"

    def __fspath__(self) -> str:
        path = self._path()
        if not path.exists():
            with _MAKING:  # one at a time: each holds the pixels of a video
                if not path.exists():
                    self._make(path)
        return str(path)

    def _path(self) -> pathlib.Path:
        try:
            stat = self._source.stat()
        except OSError:
            raise UserError(f"no such file: {self._source}") from None
        identity = f"{self._source.resolve()} {stat.st_size} {stat.st_mtime_ns} {self._settings}"
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return cache_folder() / "evaluation" / digest / self.name


def excerpt(video: pathlib.Path, start: float, end: float) -> Derived:
    """The part of a video from `start` to `end`, in seconds; at least one frame, at most MAX_FRAMES."""

    def make(path: pathlib.Path) -> None:
        rate = 1.0

        def pick(times: np.ndarray, fps: float) -> np.ndarray:
            nonlocal rate
            first, last = np.searchsorted(times, (start - 1e-6, end + 1e-6)).tolist()
            first = min(first, len(times) - 1)
            step = -(-max(last - first, 1) // MAX_FRAMES)
            rate = fps / step
            return np.arange(first, max(last, first + 1), step)[None]

        media.write("video", path, media.Video(read_picked(video, pick, MAX_FRAME_PIXELS)[0], rate))

    return Derived(video, ".mp4", f"{start:g} {end:g}", make)


def from_frames(folder: pathlib.Path, fps: float, start: float = 0.0, end: float = np.inf) -> Derived:
    """The pictures of a folder, in the order of their names, as a video: those from `start` to `end`, in seconds."""

    def make(path: pathlib.Path) -> None:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise UserError(f"{folder} has no pictures")
        first = min(max(round(start * fps), 0), len(files) - 1)
        last = max(len(files) if end == np.inf else min(round(end * fps), len(files)), first + 1)
        step = -(-(last - first) // MAX_FRAMES)
        frames = [media.read_image(file) for file in files[first:last:step]]
        if len(sizes := {frame.shape[:2] for frame in frames}) > 1:
            raise UserError(f"the pictures in {folder} differ in size: {sorted(sizes)}")
        media.write("video", path, media.Video(np.stack(frames), fps / step))

    return Derived(folder, ".mp4", f"{fps:g} {start:g} {end:g}", make)


def with_gap(sound: pathlib.Path, begin: float, end: float) -> Derived:
    """A sound that is silent from `begin` to `end`, shares of its length; one channel at 16 kHz."""

    def make(path: pathlib.Path) -> None:
        samples = media.read_audio(sound).copy()
        samples[int(begin * len(samples)) : int(end * len(samples))] = 0
        media.write("audio", path, media.Audio(samples, 16_000))

    return Derived(sound, ".wav", f"{begin:g} {end:g}", make)
