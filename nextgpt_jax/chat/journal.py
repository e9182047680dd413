"""What has been asked and answered, in a file of JSON lines that survives a kill: nothing is paid for twice."""

import fcntl
import json
import os
import pathlib
import threading
from typing import Any, NamedTuple

from nextgpt_jax.chat.costs import NO_USAGE, Usage
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.json_files import parse_json


class Entry(NamedTuple):
    """What is known about a question.

    Attributes:
      reply: the accepted reply; None: there is none yet.
      reasons: why earlier replies were rejected.
      usage: the tokens of all its replies.
    """

    reply: Any = None
    reasons: tuple[str, ...] = ()
    usage: Usage = NO_USAGE


class Journal:
    """Appends to the file `path`, which one process may have open at a time. Used as a context manager.

    A line is {"key", "usage", and "reply" or "reason"}. A last line without its end, which a killed process leaves, is
    removed. A file that would be empty is removed, too.
    """

    def __init__(self, path: str | os.PathLike, elsewhere: str = "give another --output"):
        """
        Args:
          elsewhere: what a user can do instead of waiting for another process, for a message.
        """
        self.path, self._elsewhere = pathlib.Path(path), elsewhere
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._file: Any = None

    def __enter__(self) -> "Journal":
        """Opens and reads the file.

        Raises:
          UserError: another process has it open, or it is something else.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._file.fileno()).st_nlink:  # another run has just removed it
                raise BlockingIOError
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{self.path} is in use by another run: wait for it, or {self._elsewhere}") from None
        except OSError as error:
            raise UserError(f"{self.path} can't be written: {first_line(error)}") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._file.seek(0, os.SEEK_END) == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        size = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            size += len(line)
            try:
                self._add(parse_json(line.decode()))
            except (UserError, KeyError, TypeError, ValueError):
                raise UserError(f"{self.path}, line {number} is no journal of this command: move the file") from None
        self._file.truncate(size)

    def _add(self, row: dict[str, Any]) -> None:
        old = self.get(row["key"])
        tokens_in, tokens_out = row["usage"]
        usage = old.usage.plus(Usage(int(tokens_in), int(tokens_out)))
        reasons = (*old.reasons, row["reason"]) if "reason" in row else old.reasons
        self._entries[row["key"]] = Entry(row.get("reply", old.reply), reasons, usage)

    def get(self, key: str) -> Entry:
        """What is known about the question with this key."""
        return self._entries.get(key, Entry())

    def accept(self, key: str, reply: Any, usage: Usage) -> None:
        """Records an accepted reply. Raises UserError if the file cannot be written."""
        self._write({"key": key, "usage": list(usage), "reply": reply})

    def reject(self, key: str, reason: str, usage: Usage) -> None:
        """Records a rejected reply. Raises UserError if the file cannot be written."""
        self._write({"key": key, "usage": list(usage), "reason": reason})

    def _write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            try:
                self._file.write(line)
                self._file.flush()
            except OSError as error:
                raise UserError(f"{self.path} can't be written: {first_line(error)}") from None
            self._add(row)
