"""The answers of a run on disk: RUN/answers.jsonl, or a file of each shard, with the media below RUN/media.

A batch is written at once, after its media, and counts as answered when all of its lines and files are there. So a
run that was killed goes on with the first batch that does not, and batches are as they would have been.
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, Any

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.evaluation.choosing import Shard
from nextgpt_jax.evaluation.types import Outcome, Sample
from nextgpt_jax.files import atomic_write, cut_partial_line
from nextgpt_jax.json_files import differing, parse_json

MEDIA = "media"
_RECORD = "evaluation.json"


def claim(folder: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Makes the folder of a run, or checks that it holds answers of the same run: what these depend on, by name.

    Raises:
      UserError: it is of another run, or cannot be written.
    """
    file = folder / _RECORD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists() or any(folder.glob("answers*.jsonl")):
            if different := differing(file, record):
                raise UserError(
                    f"{folder} has the answers of a run with other {' and '.join(different)}: give another --output, "
                    "or remove that folder"
                )
            return
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(record, indent=2, default=str) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {first_line(error)}") from None


class Answers:
    """What is answered, by the index of the sample: {"id", "text", "media", "tokens"}, or with "error"."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._lines: dict[int, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Reads the files of all shards, of which some may be written right now.

        Raises:
          UserError: one is damaged.
        """
        for file in sorted(self.folder.glob("answers*.jsonl")):
            self._lines |= _read(file)

    def is_answered(self, batch: Iterable[int]) -> bool:
        """Whether all samples of a batch are answered, and their media are there."""
        return all(i in self._lines and all(map(self._exists, _names(self._lines[i]))) for i in batch)

    def _exists(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            return (self.folder / name).stat().st_size > 0
        return False

    def outcome(self, index: int, sample: Sample) -> Outcome:
        """The outcome of a sample; empty, if it could not be answered."""
        answer = self._lines[index]
        media = {name: [self.folder / file for file in files] for name, files in answer.get("media", {}).items()}
        return Outcome(sample, answer.get("text", ""), media)

    def errors(self) -> dict[int, str]:
        """Why samples could not be answered, by their index."""
        return {i: answer["error"] for i, answer in sorted(self._lines.items()) if "error" in answer}

    def of(self, batches: Iterable[range]) -> set[int]:
        """The samples of the batches that are answered."""
        return {i for batch in batches if self.is_answered(batch) for i in batch}

    def add(self, lines: Mapping[int, dict[str, Any]]) -> None:
        """Takes answers that were written just now."""
        self._lines |= lines


def _names(answer: Mapping[str, Any]) -> list[str]:
    return [name for names in answer.get("media", {}).values() for name in names]


def _read(file: pathlib.Path) -> dict[int, dict[str, Any]]:
    found = {}
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if line.endswith(b"\n"):
                try:
                    answer = parse_json(line.decode())
                    found[answer.pop("index")] = answer
                except (UserError, ValueError, KeyError, AttributeError):
                    raise UserError(f"{file}, line {number} is no answer of an evaluation: remove the line") from None
    return found


class AnswerFile:
    """The file of a shard, which one process may write at a time. A context manager."""

    def __init__(self, folder: pathlib.Path, shard: Shard, keep: Collection[int]):
        """
        Args:
          keep: samples whose answers count; others, of a batch that was not finished, are removed.

        Raises:
          UserError: another process writes it, or it cannot be written.
        """
        self._path = folder / shard.file
        try:
            (folder / MEDIA).mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self._path.open("ab")
            _lock(self._file, self._path)
            self._clean(keep)
        except OSError as error:
            raise UserError(f"{self._path} can't be written: {first_line(error)}") from None

    def _clean(self, keep: Collection[int]) -> None:
        lines, known = cut_partial_line(self._path), _read(self._path)
        if lines == len(known) and all(i in keep for i in known):
            return
        kept = [_line(i, known[i]) for i in sorted(known) if i in keep]
        self._file.truncate(0)  # not another file: this one is locked
        self._file.write(b"".join(kept))
        self._file.flush()

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, answers: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Writes the answers of a batch; their media are on disk.

        Raises:
          UserError: the file can't be written.
        """
        try:
            self._file.write(b"".join(_line(i, answer) for i, answer in answers))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"{self._path} can't be written: {first_line(error)}") from None


def _line(index: int, answer: Mapping[str, Any]) -> bytes:
    return json.dumps({"index": index, **answer}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _lock(file: IO[bytes], path: pathlib.Path) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"{path} is written by another process: give each one its --shard=i/n, or wait for it"
        ) from None
    except OSError:  # a file system without locks
        pass
