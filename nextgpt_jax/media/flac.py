"""FLAC files by soundfile, to their end: libsndfile stops at the number of samples that the header promises."""

import os
import re
from typing import IO

import soundfile

from nextgpt_jax.media.ogg import FilePart

_FIELDS, _HEADER = 18, 26  # bytes of a file up to rate, channels, depth and samples (64 bits), and up to their end
_COUNT = 2**36 - 1  # the bits of the number of samples
_DEPTHS = (8, 16, 24)  # that libsndfile scales
_FILE = rb"fLaC[\0\x80]\0\0\x22"  # its name, then the head of a block of 34 bytes
_TAG = rb"ID3[\2-\4]\0.[\0-\x7f]{4}"  # ID3v2
_OLD_TAG = 128  # bytes of an ID3v1 tag, which begins with "TAG"
_MARKS, _LONGEST = re.compile(_FILE + b"|" + _TAG, re.DOTALL), 10
_SEARCH = 1 << 20  # bytes that are searched at once


def promised_samples(file: IO[bytes]) -> int:
    """The number of samples per channel that a FLAC file's header says; 0: unknown, or the file is no FLAC file."""
    file.seek(0)
    header = file.read(_HEADER)
    return int.from_bytes(header[_FIELDS:], "big") & _COUNT if header[:4] == b"fLaC" else 0


def flac_links(file: IO[bytes]) -> list[FilePart]:
    """The FLAC files of which a file was joined, without the tags around them.

    FFmpeg loses sound where one ends and the next begins, and up to version 8.0 before tags.
    """
    marks, size, data = {}, 0, b""
    file.seek(0)
    while more := file.read(_SEARCH):
        data = data[1 - _LONGEST :] + more
        size += len(more)
        marks |= {size - len(data) + found.start(): found.group() for found in _MARKS.finditer(data)}
    starts = [at for at, mark in marks.items() if mark.startswith(b"fLaC")] or [0]
    tags = {at + _tag_bytes(mark): at for at, mark in marks.items() if mark.startswith(b"ID3")}  # by their ends
    ends = [tags.get(end, end) for end in [*starts[1:], size]]
    return [FilePart(file, start, _before_old_tag(file, end)) for start, end in zip(starts, ends)]


def _tag_bytes(head: bytes) -> int:
    return 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))


def _before_old_tag(file: IO[bytes], end: int) -> int:
    start = max(0, end - _OLD_TAG)
    file.seek(start)
    return start if file.read(3) == b"TAG" else end


class UnboundedFlac(soundfile.SoundFile):
    """A FLAC file whose number of `frames` counts as unknown, so that it is read until there are no more.

    Raises soundfile.SoundFileRuntimeError if it is damaged, or of a depth that libsndfile does not know how to scale.
    """

    def __init__(self, file: IO[bytes]):
        file.seek(0)
        header = file.read(_HEADER)
        fields = int.from_bytes(header[_FIELDS:], "big")
        if (depth := (fields >> 36) % 32 + 1) not in _DEPTHS:
            raise soundfile.SoundFileRuntimeError(f"{depth} bits")
        unknown = header[:_FIELDS] + (fields & ~_COUNT).to_bytes(_HEADER - _FIELDS, "big")
        super().__init__(_WithHeader(file, unknown))

    def seekable(self) -> bool:
        """False: soundfile would seek after each block, which needs the number of samples."""
        return False


class _WithHeader(FilePart):
    """A file whose first bytes are replaced."""

    def __init__(self, file: IO[bytes], header: bytes):
        super().__init__(file, 0, file.seek(0, os.SEEK_END))
        self._header = header

    def readinto(self, buffer) -> int:
        part = self._header[self.tell() :]
        count = super().readinto(buffer)
        part = part[:count]
        memoryview(buffer).cast("B")[: len(part)] = part
        return count
