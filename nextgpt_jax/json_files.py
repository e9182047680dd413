"""JSON of users, parsed within limits: what cannot be used later is refused here, in one line."""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import is_remote, normal_path

_MAX_DEPTH = 100  # levels of lists and objects
_TOO_DEEP = f"not valid JSON: nested more than {_MAX_DEPTH} levels deep"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """Parses a JSON text.

    Raises:
      UserError: "not valid JSON: ...", for a text that is not JSON or nested more than 100 levels deep, an integer of
        more digits than Python converts, or a surrogate without its pair (no tokenizer takes it).
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.strip() else ""
        raise UserError(f"not valid JSON: {error.msg}: {line}column {error.colno}") from None
    except ValueError:
        raise UserError("not valid JSON: an integer has too many digits") from None
    except RecursionError:
        raise UserError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > _MAX_DEPTH and _is_deep(value):
        raise UserError(_TOO_DEEP)
    if _SURROGATE.search(text) and not _is_unicode(value):
        raise UserError(f"not valid JSON: a surrogate without its pair{_place(value)}")
    return value


def read_json(path: str | pathlib.Path) -> Any:
    """Parses a JSON file, with or without a byte order mark.

    Raises:
      UserError: the file is missing or cannot be read, or see `parse_json`.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except UserError as error:
        raise UserError(f"{path} is {error}") from None


def differing(record: pathlib.Path, values: Mapping[str, Any]) -> list[str]:
    """The names of `values` that have other values in a JSON file of an object, or none; all, if there is no file.

    What is no JSON value counts as its text, as `json.dumps(values, default=str)` writes it.

    Raises:
      UserError: the file cannot be read.
    """
    known = read_json(record) if record.exists() else {}
    wanted = json.loads(json.dumps(values, default=str))
    return [name for name in wanted if not isinstance(known, dict) or known.get(name) != wanted[name]]


def read_text(path: str | pathlib.Path) -> str:
    """The content of a UTF-8 file, without its byte order mark.

    Raises:
      UserError: the file is missing, cannot be read or is not UTF-8.
    """
    with reading_text(path):
        try:
            if is_remote(path):
                return normal_path(path).read_bytes().decode("utf-8-sig")
            return pathlib.Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:  # of the whole file, so its place is known
            raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


@contextlib.contextmanager
def reading_text(path: str | pathlib.Path) -> Iterator[None]:
    """Turns what fails while the body reads a UTF-8 file into one line.

    Raises:
      UserError: the file is missing, cannot be read or is not UTF-8.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _place(value: Any, where: str = "") -> str:
    """ " in [3].caption" of the first text below `value` that is not Unicode; empty: a name, or `value` itself."""
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        if not _is_unicode(child) and _is_unicode(name):
            inner = f"{where}.{name}" if isinstance(name, str) else f"{where}[{name}]"
            return _place(child, inner.removeprefix("."))
    return f" in {where}" if where else ""
