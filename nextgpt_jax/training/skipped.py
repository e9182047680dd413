"""Records that a run leaves out: counted, written down, and a run that would leave out too many stops."""

import collections
import json
import pathlib
import threading
from collections.abc import Mapping, Sequence

from nextgpt_jax.data.readers import Problem
from nextgpt_jax.data.survey import too_many
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import append_text


class SkipLog:
    """The records that a run skips: those found when the files were read, and those whose media cannot be decoded.

    The file has a line for each: step (0: before the first), source, record, reason. Examples are made ahead of the
    steps that they belong to, so what is found is held until its step comes: a resumed run finds it again.
    """

    def __init__(self, path: pathlib.Path, counts: Mapping[str, int], max_share: float):
        """
        Args:
          path: of the file.
          counts: the number of records of each source.
          max_share: of the records of a source that may be skipped.
        """
        self._path, self._counts, self._max_share = path, counts, max_share
        self._found: dict[int, list[Problem]] = {}
        self._skipped: dict[str, set[str]] = collections.defaultdict(set)
        self._lock = threading.Lock()

    def start(self, problems: Sequence[Problem], step: int) -> None:
        """Writes what was found in the files, and keeps what the run skipped up to the step where it goes on."""
        lines = [_line(0, problem) for problem in problems]
        for problem in problems:
            self._skipped[problem.source].add(problem.record)
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                entry = json.loads(line)
                if 0 < entry["step"] <= step:
                    lines.append(line + "\n")
                    self._skipped[entry["source"]].add(entry["record"])
        if lines or self._path.exists():
            self._path.write_text("".join(lines))

    def add(self, batch: int, problem: Problem) -> None:
        """Notes a sample that could not be made for a batch. Called from the threads that make examples."""
        with self._lock:
            self._found.setdefault(batch, []).append(problem)

    def settle(self, batch: int, step: int) -> list[Problem]:
        """What was skipped of the batch that `step` trains; it is written down.

        Raises:
          UserError: more of a source is skipped now than it may.
        """
        with self._lock:
            found = self._found.pop(batch, [])
        if not found:
            return found
        append_text(self._path, "".join(_line(step, problem) for problem in found))
        for problem in found:
            seen, count = self._skipped[problem.source], self._counts[problem.source]
            seen.add(problem.record)
            if len(seen) > self._max_share * count:
                raise UserError(
                    f"{problem.source}, {problem.record}: {problem.reason} "
                    f"({too_many(len(seen), count, self._max_share)})"
                )
        return found


def _line(step: int, problem: Problem) -> str:
    return json.dumps({"step": step, **problem.entry}) + "\n"
