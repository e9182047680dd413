"""Errors that the user can fix. Any other exception is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input, configuration or checkpoint: a one-line message that names the problem and the remedy."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the name of its type if the message is empty."""
    message = getattr(error, "strerror", None) or str(error)
    return (message.splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" with the known name nearest to `name`, or nothing."""
    found = difflib.get_close_matches(name, list(known), 1, cutoff=0.4)
    return f"; did you mean {found[0]}?" if found else ""
