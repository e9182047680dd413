"""Annotation files of datasets and their media: what is missing or malformed is named, with where it comes from."""

import csv
import io
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.json_files import parse_json, read_json, read_text

T = TypeVar("T")
_KINDS = {str: "a text", int: "an integer", list: "a list", dict: "an object"}


class Fields(Mapping[str, Any]):
    """The fields of a record, checked when they are taken."""

    def __init__(self, record: Any):
        if not isinstance(record, Mapping):
            raise UserError(f"should be an object, got {reprlib.repr(record)}")
        self._record = record

    def __getitem__(self, name: str) -> Any:
        if self._record.get(name) is None:
            raise UserError(f"lacks {name}")
        return self._record[name]

    def __iter__(self) -> Any:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)

    def text(self, name: str) -> str:
        """A text that is not blank."""
        if not (value := self._get(name, str).strip()):
            raise UserError(f"{name} is blank")
        return value

    def optional_text(self, name: str) -> str:
        """A text; empty, if it is null or absent."""
        return self._get(name, str).strip() if self._record.get(name) is not None else ""

    def integer(self, name: str) -> int:
        """An integer."""
        return self._get(name, int)

    def number(self, name: str) -> float:
        """A number."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name} is {reprlib.repr(value)}, not a number")
        return float(value)

    def name(self, name: str) -> str:
        """A text or an integer, as text: an identifier."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            raise UserError(f"{name} is {reprlib.repr(value)}, not a name")
        return str(value).strip()

    def texts(self, name: str) -> list[str]:
        """A list of at least one text."""
        values = self._get(name, list)
        if not values or not all(isinstance(value, str) and value.strip() for value in values):
            raise UserError(f"{name} is {reprlib.repr(values)}, not a list of texts")
        return [value.strip() for value in values]

    def items_of(self, name: str) -> list[Any]:
        """A list."""
        return self._get(name, list)

    def objects(self, name: str) -> list["Fields"]:
        """A list of objects."""
        return [Fields(value) for value in self._get(name, list)]

    def fields(self, name: str) -> "Fields":
        """An object."""
        return Fields(self._get(name, dict))

    def _get(self, name: str, kind: type) -> Any:
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UserError(f"{name} is {reprlib.repr(value)}, not {_KINDS[kind]}")
        return value


def annotations(data: pathlib.Path, layout: Mapping[str, str], *names: str) -> pathlib.Path:
    """The first of some annotation files that is there.

    Args:
      data: the folder of the dataset.
      layout: of the task: where files come from, by their names or those of their folders.
      names: of files below it.

    Raises:
      UserError: none is there; the line says where they come from.
    """
    if not data.is_dir():
        raise UserError(f"no such folder: {data}")
    for name in names:
        if (path := data / name).is_file():
            return path
    where = " and no ".join(str(data / name) for name in names)
    raise UserError(f"there is no {where}: it comes from {_source(layout, names[0])}")


def read_list(path: pathlib.Path, parse: Callable[[Fields], T]) -> list[T]:
    """What `parse` makes of each record of a JSON list.

    Raises:
      UserError: the file cannot be read, is something else, or a record is malformed; the line names both.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} should be a list of objects")
    return _parsed(path, ((f"record {i}", record) for i, record in enumerate(content)), parse)


def read_lists(path: pathlib.Path, **parse: Callable[[Fields], Any]) -> tuple[list[Any], ...]:
    """What `parse` makes of the records of each list in a JSON object, by the names of the lists. Raises as
    `read_list`."""
    content = read_json(path)
    for name in parse:
        if not isinstance(content, Mapping) or not isinstance(content.get(name), list) or not content[name]:
            raise UserError(f"{path} should be an object with lists of {' and '.join(parse)}")
    return tuple(
        _parsed(path, ((f"{name}[{i}]", record) for i, record in enumerate(content[name])), function)
        for name, function in parse.items()
    )


def read_objects(path: pathlib.Path, parse: Callable[[str, Any], T]) -> dict[str, T]:
    """What `parse` makes of each name and value of a JSON object. Raises as `read_list`."""
    content = read_json(path)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} should be an object of records by name")
    rows = [(f"record {reprlib.repr(name)}", (name, record)) for name, record in content.items()]
    return dict(zip(content, _parsed(path, rows, lambda row: parse(*row), wrap=lambda row: row)))


def read_lines(path: pathlib.Path, parse: Callable[[Fields], T]) -> list[T]:
    """What `parse` makes of each line of a JSON lines file. Raises as `read_list`."""
    lines = [(f"line {i}", line) for i, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    return _parsed(path, lines, parse, wrap=lambda line: Fields(parse_json(line)))


def read_table(path: pathlib.Path, parse: Callable[[Fields], T], columns: Sequence[str]) -> list[T]:
    """What `parse` makes of each row of a CSV file with a header; empty cells are absent. Raises as `read_list`.

    Args:
      columns: that the header must have.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[tuple[str, dict[str, str]]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in columns if name not in header]:
            raise UserError(f"{path} has no column {missing[0]!r} in its first line")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((f"line {reader.line_num}", {n: c for n, c in zip(header, cells) if n and c.strip()}))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not a row of a table: {first_line(error)}") from None
    if not rows:
        raise UserError(f"{path} has no rows")
    return _parsed(path, rows, parse)


def _parsed(
    path: pathlib.Path, rows: Iterable[tuple[str, Any]], parse: Callable[[Any], T], wrap: Callable = Fields
) -> list[T]:
    found = []
    for place, row in rows:
        try:
            found.append(parse(wrap(row)))
        except UserError as error:
            raise UserError(f"{path}, {place}: {error}") from None
    return found


class Media:
    """Media of a dataset, in one of several folders. Those that are missing are reported together, by `check`."""

    def __init__(self, data: pathlib.Path, layout: Mapping[str, str], *folders: str):
        """
        Args:
          data: the folder of the dataset.
          layout: of the task.
          folders: below it, as they are called where the media are published; the first one is in `layout`.
        """
        self._data, self._folders, self._source = data, folders, _source(layout, folders[0])
        self._listed: dict[pathlib.Path, frozenset[str]] = {}
        self._missing: list[pathlib.Path] = []
        self._count = 0

    def find(self, *names: str) -> pathlib.Path:
        """The first of some files that is there; `check` reports it, if none is."""
        self._count += 1
        for folder in self._folders:
            for name in names:
                path = self._data / folder / name
                if path.name in self._names(path.parent):
                    return path
        self._missing.append(self._data / self._folders[0] / names[0])
        return self._missing[-1]

    def _names(self, folder: pathlib.Path) -> frozenset[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._listed[folder] = frozenset()
        return self._listed[folder]

    def check(self, annotations: pathlib.Path) -> None:
        """Raises UserError if files were not found.

        Args:
          annotations: the file whose records name them.
        """
        if self._missing:
            count = f"{len(self._missing):,} of {self._count:,} media are missing, the first is "
            others = "" if len(self._folders) == 1 else f" (nor in {', '.join(self._folders[1:])})"
            raise UserError(
                f"{count if self._count > 1 else 'there is no '}{self._missing[0]}{others}: they come from "
                f"{self._source}; to evaluate the others, remove the records of missing ones from {annotations}"
            )


def with_suffixes(name: str, modality: str) -> list[str]:
    """A file name with each usual suffix of a modality."""
    suffixes = {"video": ("mp4", "mkv", "webm", "avi", "mov"), "audio": ("wav", "flac", "mp3", "m4a", "ogg", "opus")}
    return [f"{name}.{suffix}" for suffix in suffixes[modality]]


def _source(layout: Mapping[str, str], name: str) -> str:
    """Where a file or folder comes from: the entry of the layout that is it, or the nearest folder above it."""
    parts = name.split("/")
    for end in range(len(parts), 0, -1):
        prefix = "/".join(parts[:end])
        for entry, source in layout.items():
            if entry.rstrip("/") == prefix:
                return source
    raise KeyError(f"the layout has no {name}")
