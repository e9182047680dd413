"""Chained Ogg files: recordings that were joined, one whole Ogg stream ("link") after the other (RFC 3533)."""

import io
import os
from typing import IO

_HEADER = 27  # bytes of a page before its table of segments
_FIRST = 2  # flag of a stream's first page
_SEARCH = 1 << 16  # bytes that are searched at once for the next page


def ogg_links(file: IO[bytes]) -> list["FilePart"]:
    """The links of an Ogg file; they need not have the same rate, channels or codec."""
    starts, at, was_first = [], 0, False
    while (page := _next_page(file, at)) is not None:
        at, head = page
        is_first = bool(head[5] & _FIRST)
        if is_first and not was_first:  # the streams of one link begin with consecutive pages
            starts.append(at)
        was_first = is_first
        segments = head[26]
        at += _HEADER + segments + sum(head[_HEADER : _HEADER + segments])
    ends = [*starts[1:], file.seek(0, os.SEEK_END)]
    return [FilePart(file, start, end) for start, end in zip(starts, ends)]


def _next_page(file: IO[bytes], at: int) -> tuple[int, bytes] | None:
    """Where the first page at or after `at` begins, and its header; None: there is none."""
    file.seek(at)
    data = file.read(_HEADER + 255)
    while len(data) >= _HEADER:
        found = data.find(b"OggS")
        if found == 0:
            return at, data
        at += found if found > 0 else len(data) - 3
        file.seek(at)
        data = file.read(_SEARCH)
    return None


class FilePart(io.RawIOBase):
    """The bytes `start` .. `end` of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, end: int):
        self._file, self._start, self._size, self._at = file, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view[: max(0, self._size - self._at)])
        self._at += count
        return count
