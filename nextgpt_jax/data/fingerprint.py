"""Whether data files are the same: by their contents, for the record of a run; by place and time, for caches."""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

from nextgpt_jax.errors import UserError, first_line

DATA_SUFFIXES = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv"),
    *(".tar", ".parquet", ".arrow", ".array_record", ".arrayrecord"),
)
_DIGITS = 16
_WHOLE = 1 << 28  # bytes: of longer files, blocks are read
_BLOCK = 1 << 20
_BLOCKS = 256  # at equal distances, the first and the last among them
SMALL = 1 << 20  # bytes
_ENDS = 1 << 16  # bytes at the beginning and at the end of a file, for caches


def fingerprint(paths: Iterable[str | os.PathLike]) -> str:
    """16 hexadecimal digits of SHA-256 over the sizes and contents of data files, in this order; not over their names.

    Of a file of more than 256 MiB, 256 blocks of 1 MiB are read, so that archives of media take seconds.

    Args:
      paths: of files; of a folder, the data files below it count.

    Raises:
      UserError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        for file in data_files(path):
            try:
                size = os.stat(file).st_size
                digest.update(b"%d:" % size)
                with open(file, "rb", buffering=0) as opened:
                    for begin, end in _blocks(size):
                        opened.seek(begin)
                        while begin < end and (content := opened.read(min(_BLOCK, end - begin))):
                            digest.update(content)
                            begin += len(content)
            except (OSError, ValueError) as error:  # ValueError: a path with a null character
                raise UserError(f"{file} cannot be read: {first_line(error)}") from None
    return digest.hexdigest()[:_DIGITS]


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    if size <= _WHOLE:
        yield 0, size
        return
    for number in range(_BLOCKS):
        begin = (size - _BLOCK) * number // (_BLOCKS - 1)
        yield begin, begin + _BLOCK


def data_files(path: str | os.PathLike) -> list[str]:
    """A file; or the data files below a folder, in order."""
    if not os.path.isdir(path):
        return [str(path)]
    return sorted(str(file) for file in pathlib.Path(path).rglob("*") if file.suffix.lower() in DATA_SUFFIXES)


def identity(path: str | os.PathLike) -> str:
    """What changes when a data file is changed: its place, size, time of change, and the bytes at its ends; of a
    folder, of its data files. Empty, if they have less than 1 MiB, which is not worth a cache, or cannot be read."""
    found, size = hashlib.sha256(), 0
    try:
        for file in data_files(path):
            status = os.stat(file)
            size += status.st_size
            place = f"{os.path.abspath(file)} {status.st_size} {status.st_mtime_ns} "
            found.update(place.encode(errors="surrogateescape"))
            with open(file, "rb", buffering=0) as opened:
                found.update(opened.read(_ENDS))
                opened.seek(max(0, status.st_size - _ENDS))
                found.update(opened.read(_ENDS))
    except (OSError, ValueError):
        return ""
    return found.hexdigest() if size >= SMALL else ""
