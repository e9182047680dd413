"""The requests of a file: answered together, in any order, and written in theirs. An interrupted run is continued."""

import collections
import json
import math
import os
import pathlib
import queue
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import atomic_write, cut_partial_line
from nextgpt_jax.inference.requests import RequestFile, make_request
from nextgpt_jax.inference.responses import write_numbered
from nextgpt_jax.inference.types import MediaOutput, Response
from nextgpt_jax.json_files import differing, parse_json
from nextgpt_jax.modalities import output_modalities
from nextgpt_jax.serving.answers import Event
from nextgpt_jax.serving.batcher import Batcher

_AHEAD = 1024  # replies that may wait for an earlier one


class ReplyFile:
    """OUTPUT/replies.jsonl, one line a request, in their order.

    Replies that are finished before an earlier one are kept in replies.jsonl.part meanwhile, so that a run that is
    killed has lost none. What the replies are of is recorded in replies.run.json.

    Attributes:
      written: replies in the file; all that come before are there.
    """

    def __init__(self, folder: pathlib.Path, run: Mapping[str, Any]):
        """Opens the file of an interrupted run with the same `run`, or a new one.

        Raises:
          UserError: the folder has replies of another run, or cannot be written.
        """
        self._path, self._part = folder / "replies.jsonl", folder / "replies.jsonl.part"
        record = folder / "replies.run.json"
        self._early: dict[int, str] = {}
        self.written = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                self._check(record, run)
                self._recover()
            with atomic_write(record) as temporary:
                temporary.write_text(json.dumps(run, indent=2, default=str) + "\n")
            self._file = self._path.open("ab")
            self._part_file = self._part.open("ab")
            self._compact()
            self._flush()
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {first_line(error)}") from None

    def __contains__(self, index: int) -> bool:
        """Whether a request has its reply."""
        return index < self.written or index in self._early

    def write(self, index: int, reply: Mapping[str, Any]) -> None:
        """Keeps the reply to a request."""
        line = json.dumps(reply, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        self._early[index] = line
        if index > self.written:
            self._part_file.write(json.dumps([index, line]).encode() + b"\n")
            self._part_file.flush()
        self._flush()

    def close(self) -> None:
        """Closes the files; the part file remains only if replies are missing."""
        for file in (self._file, self._part_file):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if not self._early:
            self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        """Moves the replies whose turn it is into the file."""
        while (line := self._early.pop(self.written, None)) is not None:
            self._file.write(line.encode() + b"\n")
            self.written += 1
        self._file.flush()
        if self._part_file.tell() > 2**20 and not self._early:
            self._compact()

    def _compact(self) -> None:
        """Forgets what the part file has of replies that are in the file."""
        lines = "".join(json.dumps([i, line]) + "\n" for i, line in self._early.items())
        with atomic_write(self._part) as temporary:
            temporary.write_text(lines)
        self._part_file.close()
        self._part_file = self._part.open("ab")

    def _check(self, record: pathlib.Path, run: Mapping[str, Any]) -> None:
        different = differing(record, run)
        if different:
            raise UserError(
                f"{self._path} has the replies of a run with other {' and '.join(different)}: "
                "give another --output, or remove that file"
            )

    def _recover(self) -> None:
        """Reads what an interrupted run wrote; a last line that was cut short is removed."""
        self.written = cut_partial_line(self._path)
        for line in self._part.read_bytes().split(b"\n")[:-1] if self._part.exists() else ():
            index, reply = parse_json(line.decode())
            if index >= self.written:
                self._early[index] = reply


class Summary(NamedTuple):
    """What became of the requests of a file: how many, how many had an answer before, and how many failed by a fault
    of the program (invalid ones are not among them)."""

    requests: int
    before: int
    answered: int
    failed: int


def answer_file(
    batcher: Batcher,
    requests: RequestFile,
    options: Mapping[str, Any],
    output: pathlib.Path,
    run: Mapping[str, Any],
    on_reply: Callable[[int, collections.Counter[str]], None] = lambda done, made: None,
) -> Summary:
    """Answers all requests of a file that have no reply yet, and writes OUTPUT/replies.jsonl and the media.

    Args:
      options: defaults for requests that do not set them.
      run: what else the answers depend on, by name; a run with other values is not continued.
      on_reply: called with the number of replies so far and what was made since the start: tokens, images, ...

    Raises:
      UserError: see `ReplyFile`.
    """
    replies = ReplyFile(output, {"requests": requests.digest, "options": dict(options), **run})
    before = sum(i in replies for i in range(requests.count))
    finished: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    made: collections.Counter[str] = collections.Counter()
    done, answered, failed, running = before, 0, 0, 0
    limit = min(batcher.config.queue, 2 * batcher.config.rows)

    def keep(index: int, event: Event) -> None:
        nonlocal done, answered, failed
        if isinstance(event, Exception):
            failed += not isinstance(event, UserError)
            kind = "" if isinstance(event, UserError) else f"{type(event).__name__}: "
            reply: dict[str, Any] = {"error": f"{kind}{first_line(event)}"}
        else:
            assert event.response
            reply = _written(event.response, index, output)
            made.update(m.modality for m in event.response.media)
            made["token"] += event.response.tokens
            answered += 1
        replies.write(index, reply)
        done += 1
        on_reply(done, made)

    def wait() -> None:
        nonlocal running
        keep(*finished.get())
        running -= 1

    try:
        for index, record in enumerate(requests):
            if index in replies:
                continue
            while running >= limit or (running and index - replies.written >= _AHEAD):
                wait()
            try:
                if isinstance(record, UserError):
                    raise record
                merged = {**options, **record.options}
                engine = batcher.engine
                request = make_request(record.prompt, record.paths, merged, engine.config, engine.defaults)
                batcher.submit(
                    request, stream=False, timeout=math.inf, on_event=lambda e, i=index: finished.put((i, e))
                )
                running += 1
            except UserError as error:
                keep(index, error)
        while running:
            wait()
    finally:
        replies.close()
    return Summary(requests.count, before, answered, failed)


def _written(response: Response, index: int, output: pathlib.Path) -> dict[str, Any]:
    """Writes the media of a response; returns its line."""
    names = write_numbered(output, index, response.media)
    return {"text": response.text, **files_by_modality(response.media, names), "tokens": response.tokens}


def files_by_modality(media: list[MediaOutput], names: list[str]) -> dict[str, list[str]]:
    """{"images": [...], "videos": [...], "audios": [...]}."""
    pairs = list(zip(media, names, strict=True))
    return {f"{kind}s": [name for medium, name in pairs if medium.modality == kind] for kind in output_modalities()}
