"""Records of text files by number, without holding them: a JSON list, JSON lines, CSV and TSV.

A file is read once to find where its records are, which takes 16 bytes of memory each; a record is read and parsed when
it is asked for.
"""

import contextlib
import csv
import io
import json
import mmap
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

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
      unit: what a record is called in messages: "record" or "line".
    """

    def __init__(self, path: str, spans: "_Spans", unit: str, numbers: Sequence[int]):
        """
        Args:
          spans: where the records are.
          numbers: of each record, as messages have them.
        """
        self.path, self.unit = path, unit
        self._spans, self._numbers = spans, numbers
        self._file: int | None = None
        self._process = 0

    def __len__(self) -> int:
        return len(self._spans.starts)

    def __getitem__(self, index: Any) -> Any:
        return self.parse(self.text(index))

    def place(self, index: int) -> str:
        """How messages call a record: "record 0", "line 1"."""
        return f"{self.unit} {self._numbers[index]}"

    def text(self, index: int) -> str:
        """A record as it is in the file."""
        start, end = int(self._spans.starts[index]), int(self._spans.ends[index])
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
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None and self._process == os.getpid():
            os.close(self._file)  # type: ignore[arg-type]


class TableRecords(TextRecords):
    """The rows of a CSV or TSV file, each a dict of texts by column; empty cells are absent.

    Attributes:
      columns: their names.
    """

    def __init__(self, path: str, spans: "_Spans", numbers: Sequence[int], columns: Sequence[str], dialect: Any):
        super().__init__(path, spans, "line", numbers)
        self.columns, self._dialect = tuple(columns), dialect

    def parse(self, text: str) -> dict[str, str]:
        """A row."""
        cells = _cells(text, self._dialect)
        if len(cells) > len(self.columns):
            raise UserError(f"has {len(cells)} cells, but there are {len(self.columns)} columns")
        return {name: cell for name, cell in zip(self.columns, cells, strict=False) if cell}


class _Spans(NamedTuple):
    """Where the records of a file begin and end, int64 [n] each, in bytes."""

    starts: np.ndarray
    ends: np.ndarray


def open_json(path: str) -> TextRecords | Any:
    """The records of a JSON list or of JSON lines; or the content, of a file that holds one other value.

    Raises:
      UserError: the file cannot be read, or is neither.
    """
    with _mapped(path) as content:
        begin = _skip_space(content, len(_BOM) if content[: len(_BOM)] == _BOM else 0)
        if content[begin : begin + 1] == b"[":
            spans = _list_spans(path, content, begin)
            return TextRecords(path, spans, "record", range(len(spans.starts)))
        if _is_lines(path, content, begin):
            spans, numbers = _lines(content, begin, quoted=False)
            return TextRecords(path, spans, "line", numbers)
        text = content[begin:]
    try:
        return parse_json(text.decode())
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
    with _mapped(path) as content:
        begin = len(_BOM) if content[: len(_BOM)] == _BOM else 0
        spans, numbers = _lines(content, begin, quoted=delimiter != "\t")
        if not len(numbers):
            raise UserError(f"{path} has no rows")
        header = content[int(spans.starts[0]) : int(spans.ends[0])]
    try:
        columns = [cell.strip() for cell in _cells(header.decode(), dialect)]
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}, line 1: {first_line(error)}") from None
    if default_columns and not set(default_columns) <= set(columns):
        columns = list(default_columns)
    else:
        spans, numbers = _Spans(spans.starts[1:], spans.ends[1:]), numbers[1:]
    if len(set(columns)) < len(columns):
        raise UserError(f"{path}: the names of its columns are not different: {', '.join(columns)}")
    if not len(numbers):
        raise UserError(f"{path} has no rows")
    return TableRecords(path, spans, numbers, columns, dialect)


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


def _lines(content: Any, begin: int, quoted: bool) -> tuple[_Spans, np.ndarray]:
    """The lines that are not blank, and their numbers from 1. If `quoted`, line ends between quotes do not count."""
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
    return _Spans(starts[keep], stops[keep]), np.flatnonzero(keep) + 1


def _list_spans(path: str, content: Any, begin: int) -> _Spans:
    """Where the elements of a JSON list are. They are parsed on the way, so that the list is known to be whole."""
    spans = np.fromiter(_elements(path, content, begin), np.dtype((np.int64, 2)))
    return _Spans(spans[:, 0].copy(), spans[:, 1].copy())


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
