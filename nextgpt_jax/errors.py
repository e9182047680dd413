"""Errors that the user can fix. Any other exception is a bug and keeps its traceback."""

import difflib
import re
from collections.abc import Iterable

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[^\n\t\r\x20-\x7e\xa0-\U0010ffff]")


class UserError(Exception):
    """Wrong input, configuration or checkpoint: a one-line message that names the problem and the remedy."""


def printable(text: str) -> str:
    """A text without control characters and terminal escape sequences, which libraries and files may contain."""
    return _CONTROL.sub("", _ESCAPE.sub("", text))


def first_line(error: BaseException) -> str:
    """The first line of a library's error message that is not blank, or the name of its type if there is none."""
    message = printable(getattr(error, "strerror", None) or str(error))
    return next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" with the known name nearest to `name`, or nothing."""
    found = difflib.get_close_matches(name, list(known), 1, cutoff=0.4)
    return f"; did you mean {found[0]}?" if found else ""
