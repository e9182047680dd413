"""Errors that the user can mend. Everything else is a bug and keeps its traceback."""

import os
import pathlib


class UserError(Exception):
    """Input, configuration or checkpoint is wrong: the message is one line that names the thing and the remedy."""


def first_line(error: BaseException) -> str:
    """What a library's error says, in a line; its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_folder(path: str | pathlib.Path, flag: str) -> None:
    """Checks that `path` is a writable folder or can become one; `flag` is what the user gave it with.

    Raises:
      UserError: it, or the nearest parent that exists, is a file or not writable.
    """
    path = pathlib.Path(path).absolute()
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{flag}: {existing} is {'not writable' if existing.is_dir() else 'a file'}: give a folder")
