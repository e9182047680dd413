"""Records of text files by number, without holding them: a JSON list, JSON lines, CSV and TSV.

A file is read once to find where its records are, which takes 16 bytes each and is kept (cache.py); a record is read
and parsed when it is asked for.
"""

import contextlib
import csv
import io
import json
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nextgpt_jax.data.cache import Arrays, Request, kept
from nextgpt_jax.data.fingerprint import identity
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.json_files import parse_json

_CHUNK = 1 << 22  # bytes
_MARGIN = 16  # bytes at the end of a chunk, which may hold a part of a token
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"


class TextRecords(Sequence[Any]):
    """The records of a text file.

    Attributes:
      path: of the file.
      identity: see fingerprint.py.
      unit: what a record is called in messages: "record" or "line".
    """

    def __init__(self, path: str, identity: str, index: Arrays):
        """
        Args:
          index: where the records are: starts and ends, int64 [n] each, in bytes; notes.first, the number of the first
            in messages; and, where the others do not follow it one by one, `numbers`.
        """
        self.path, self.identity = path, identity
        self.unit = "line" if index.notes["lines"] else "record"
        self._index = index
        self._starts, self._ends, self._numbers = index["starts"], index["ends"], index.get("numbers")
        self._file: int | None = None
        self._process = 0

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        return self.parse(self.text(index))

    def place(self, index: int) -> str:
        """How messages call a record: "record 0", "line 1"."""
        number = self._index.notes["first"] + index if self._numbers is None else self._numbers[index]
        return f"{self.unit} {number}"

    def text(self, index: int) -> str:
        """A record as it is in the file."""
        start, end = int(self._starts[index]), int(self._ends[index])
        if self._file is None or self._process != os.getpid():
            self._file, self._process = os.open(self.path, os.O_RDONLY), os.getpid()
        content = os.pread(self._file, end - start, start)
        if len(content) != end - start:
            raise UserError("the file has become shorter")
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8: {error.reason}") from None

    def parse(self, text: str) -> Any:
        """The content of a record.

        Raises:
          UserError: it is malformed.
        """
        return parse_json(text)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_starts": None, "_ends": None, "_numbers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._starts, self._ends = self._index["starts"], self._index["ends"]
        self._numbers = self._index.get("numbers")

    def __del__(self, getpid: Callable[[], int] = os.getpid, close: Callable[[int], None] = os.close) -> None:
        file = getattr(self, "_file", None)
        if file is not None and self._process == getpid():  # at exit, the names of modules may be gone
            close(file)


class TableRecords(TextRecords):
    """The rows of a CSV or TSV file, each a dict of texts by column; empty cells are absent.

    Attributes:
      columns: their names.
    """

    def __init__(self, path: str, identity: str, index: Arrays, dialect: Any):
        super().__init__(path, identity, index)
        self.columns, self._dialect = tuple(index.notes["columns"]), dialect

    def parse(self, text: str) -> dict[str, str]:
        """A row."""
        cells = _cells(text, self._dialect)
        if len(cells) > len(self.columns):
            raise UserError(f"has {len(cells)} cells, but there are {len(self.columns)} columns")
        return {name: cell for name, cell in zip(self.columns, cells, strict=False) if cell}


def open_json(path: str) -> TextRecords | Any:
    """The records of a JSON list or of JSON lines; or the content, of a file that holds one other value.

    Raises:
      UserError: the file cannot be read, or is neither.
    """
    known, other = identity(path), b""

    def build(_: Any) -> list[Arrays]:
        nonlocal other
        with _mapped(path) as content:
            begin = _skip_space(content, len(_BOM) if content[: len(_BOM)] == _BOM else 0)
            if content[begin : begin + 1] == b"[":
                return [_list_index(path, content, begin)]
            if _is_lines(path, content, begin):
                return [_lines_index(*_lines(content, begin, quoted=False))]
            other = content[begin:]
        return [Arrays({})]

    (index,) = kept("index", [Request(path, known)], build)
    if index:
        return TextRecords(path, known, index)
    try:
        return parse_json(other.decode())
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is {first_line(error)}") from None


def open_table(path: str, delimiter: str, default_columns: Sequence[str] = ()) -> TableRecords:
    """The rows of a table. The first line has the names of the columns, unless `default_columns` are given.

    Args:
      path: of the file.
      delimiter: between cells. A tab: there are no quotes.
      default_columns: names of the columns of a file without a header; it has one if all of these are in it.

    Raises:
      UserError: the file cannot be read, or has no rows.
    """
    dialect = _Tsv if delimiter == "\t" else csv.excel

    def build(_: Any) -> list[Arrays]:
        with _mapped(path) as content:
            begin = len(_BOM) if content[: len(_BOM)] == _BOM else 0
            starts, ends, numbers = _lines(content, begin, quoted=delimiter != "\t")
            if not len(numbers):
                raise UserError(f"{path} has no rows")
            header = content[int(starts[0]) : int(ends[0])]
        try:
            columns = [cell.strip() for cell in _cells(header.decode(), dialect)]
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line 1: {first_line(error)}") from None
        if default_columns and not set(default_columns) <= set(columns):
            columns = list(default_columns)
        else:
            starts, ends, numbers = starts[1:], ends[1:], numbers[1:]
        if len(set(columns)) < len(columns):
            raise UserError(f"{path}: the names of its columns are not different: {', '.join(columns)}")
        if not len(numbers):
            raise UserError(f"{path} has no rows")
        return [_lines_index(starts, ends, numbers, columns)]

    known = identity(path)
    (index,) = kept("index", [Request(path, known, (delimiter, tuple(default_columns)))], build)
    return TableRecords(path, known, index, dialect)


class _Tsv(csv.excel_tab):
    quoting = csv.QUOTE_NONE


def _cells(text: str, dialect: Any) -> list[str]:
    try:
        (row,) = csv.reader(io.StringIO(text, newline=""), dialect)
    except (csv.Error, ValueError) as error:
        raise UserError(f"not a row of a table: {first_line(error)}") from None
    return row


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[mmap.mmap | bytes]:
    """The content of a file, mapped into memory while the body runs."""
    try:
        with pathlib.Path(path).open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            content = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    try:
        yield content
    finally:
        if isinstance(content, mmap.mmap):
            content.close()


def _release(content: mmap.mmap | bytes, end: int) -> None:
    """Lets go of the pages before `end`, which would count as memory of this process."""
    if isinstance(content, mmap.mmap) and end > mmap.PAGESIZE:
        content.madvise(mmap.MADV_DONTNEED, 0, end // mmap.PAGESIZE * mmap.PAGESIZE)


def _skip_space(content: Any, at: int) -> int:
    while at < len(content) and content[at] in _SPACE:
        at += 1
    return at


def _is_lines(path: str, content: Any, begin: int) -> bool:
    """Whether the first line is a whole JSON value; so is a file of one line, which has to be called .jsonl."""
    end = content.find(b"\n", begin)
    only = end < 0 or _skip_space(content, end) == len(content)
    if pathlib.Path(path).suffix.lower() in (".jsonl", ".ndjson"):
        return True
    if only:
        return False
    try:
        parse_json(content[begin:end].decode())
    except (UserError, UnicodeDecodeError):
        return False
    return True


def _lines(content: Any, begin: int, quoted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the lines that are not blank begin and end, and their numbers from 1. If `quoted`, line ends between quotes
    do not count."""
    ends, open_quotes = [], 0
    for at in range(begin, len(content), _CHUNK):
        chunk = np.frombuffer(content[at : at + _CHUNK], np.uint8)
        found = np.flatnonzero(chunk == ord("\n"))
        if quoted:
            quotes = np.flatnonzero(chunk == ord('"'))
            found = found[(open_quotes + np.searchsorted(quotes, found)) % 2 == 0]
            open_quotes = (open_quotes + len(quotes)) % 2
        ends.append(found + at)
        del chunk
        _release(content, at)
    stops = np.concatenate([*ends, [len(content)]]).astype(np.int64)
    starts = np.concatenate([[begin], stops[:-1] + 1]).astype(np.int64)
    filled = [i for i in np.flatnonzero(stops - starts < 64) if not content[starts[i] : stops[i]].strip()]
    keep = np.ones(len(starts), bool)
    keep[filled] = False
    return starts[keep], stops[keep], np.flatnonzero(keep) + 1


def _lines_index(starts: np.ndarray, ends: np.ndarray, numbers: np.ndarray, columns: Sequence[str] = ()) -> Arrays:
    arrays = {"starts": starts, "ends": ends}
    first = int(numbers[0]) if len(numbers) else 1
    if len(numbers) and numbers[-1] - first >= len(numbers):  # there are blank lines between them
        arrays["numbers"] = numbers
    return Arrays(arrays, {"lines": True, "first": first, "columns": list(columns)})


def _list_index(path: str, content: Any, begin: int) -> Arrays:
    """Where the elements of a JSON list are. They are parsed on the way, so that the list is known to be whole."""
    spans = np.fromiter(_elements(path, content, begin), np.dtype((np.int64, 2)))
    arrays = {"starts": np.ascontiguousarray(spans[:, 0]), "ends": np.ascontiguousarray(spans[:, 1])}
    return Arrays(arrays, {"lines": False, "first": 0})


def _elements(path: str, content: Any, begin: int) -> Iterator[tuple[int, int]]:
    # Latin-1 has one character for every byte, and what JSON is structured by are the same bytes in UTF-8.
    scan, size = json.JSONDecoder().scan_once, len(content)
    at, base, text, window = begin + 1, begin + 1, "", _CHUNK

    def fail(why: str, where: int) -> UserError:
        line = content[begin:where].count(b"\n") + 1
        return UserError(f"{path} is not valid JSON: {why}: line {line}, byte {where}")

    at = _skip_space(content, at)
    if content[at : at + 1] == b"]":
        if (rest := _skip_space(content, at + 1)) < size:
            raise fail("something follows the list", rest)
        return
    while True:
        at = _skip_space(content, at)
        while True:
            if not base <= at < base + len(text):
                base, text = at, content[at : at + window].decode("latin-1")
                _release(content, at)
            whole = base + len(text) >= size
            try:
                _, stop = scan(text, at - base)
                if whole or stop < len(text) - _MARGIN:  # else a number may go on after the window
                    break
            except (StopIteration, json.JSONDecodeError) as error:
                if isinstance(error, json.JSONDecodeError):
                    why, where = error.msg, error.pos
                else:
                    why, where = "Expecting value", error.value
                ends_inside = not why.startswith("Unterminated") and where < len(text) - _MARGIN
                if whole or (base == at and ends_inside):
                    raise fail(why, base + where) from None
            except RecursionError:
                raise fail("nested more than 100 levels deep", at) from None
            except ValueError:
                raise fail("an integer has too many digits", at) from None
            if base == at:
                window *= 2
            base, text = at, content[at : at + window].decode("latin-1")
            _release(content, at)
        end = base + stop
        yield at, end
        at = _skip_space(content, end)
        mark = content[at : at + 1]
        if mark == b"]":
            if (rest := _skip_space(content, at + 1)) < size:
                raise fail("something follows the list", rest)
            return
        if mark != b",":
            raise fail("Expecting ',' delimiter", at)
        at += 1
