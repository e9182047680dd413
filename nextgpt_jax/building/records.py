"""Files of built records: written at once or not at all, and read back as training reads them."""

import collections
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nextgpt_jax.data.formats import Formats
from nextgpt_jax.data.media_files import media_exists
from nextgpt_jax.data.pairs import Conversation, Place
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import atomic_write, check_folder
from nextgpt_jax.prompts import Input

SUFFIXES = (".json", ".jsonl")


def check_output(path: str, overwrite: bool) -> pathlib.Path:
    """The path of a new file.

    Raises:
      UserError: it has another suffix, exists, or cannot be created.
    """
    if not path:
        raise UserError("--output is missing: the file to write, such as t2m.json")
    place = pathlib.Path(path)
    if place.suffix not in SUFFIXES:
        raise UserError(f"--output: {path} should end in {' or '.join(SUFFIXES)}")
    if place.exists() and (place.is_dir() or not overwrite):
        raise UserError(f"--output: {path} exists: give another name, or --overwrite")
    check_folder(place.parent, "--output")
    return place


def make_folder(path: pathlib.Path) -> None:
    """Creates a folder that is not there. Raises UserError if it cannot be created."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} can't be created: {first_line(error)}") from None


def write_records(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes a list, or lines if the file is called .jsonl. Returns the number of records.

    Raises:
      UserError: it cannot be written, or there are no records; the file is then as it was.
    """
    lines, count = path.suffix == ".jsonl", 0
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for count, record in enumerate(records, 1):
            text = json.dumps(record, ensure_ascii=False, indent=None if lines else 1)
            try:
                file.write(f"{text}\n" if lines else f"{',' if count > 1 else '['}\n{text}")
            except UnicodeEncodeError:
                raise UserError(f"record {count - 1} has a text or the name of a file that is not UTF-8") from None
        if not count:
            raise UserError("no record is usable")
        file.write("" if lines else "\n]\n")
    return count


def read_records(path: str) -> Iterator[dict[str, Any]]:
    """The records of a file in this project's schema, as they are there but for fields that are null.

    Raises:
      UserError: it cannot be read, or has records that are malformed or of another schema.
    """
    formats = Formats()
    row = formats["instructions"]
    for file in read_samples("conversation", path).files:
        for number in range(len(file.records)):
            place = f"{path}, {file.records.place(number)}"
            try:
                record = file.records[number]
                formats.conversation(record, Place("conversation", file.folder), "instructions")
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            record = {name: value for name, value in record.items() if value is not None}
            if not set(record) <= {*row.known, *row.unused} or any(len(m) > 2 for m in record["conversations"]):
                raise UserError(
                    f"{place} is of another schema: give a file with conversations, input_images, image_captions, ... "
                    "(docs/data.md)"
                )
            yield record


def usable_records(
    records: Iterable[dict[str, Any]],
    folder: pathlib.Path,
    rejected: collections.Counter[str],
    problem_of: Callable[[Conversation], str] = lambda conversation: "",
) -> Iterator[dict[str, Any]]:
    """The records that stage 3 reads and whose media are there.

    Args:
      folder: that names of media are relative to.
      rejected: gets the number of the others, by reason.
      problem_of: what a conversation lacks; empty: nothing.
    """
    formats = Formats()
    for record in records:
        try:
            conversation = formats.conversation(record, Place("conversation", folder))
        except UserError as error:
            rejected[str(error)] += 1
            continue
        media = [s for turn in conversation for s in turn.human if isinstance(s, Input)]
        missing = [s.modality for s in media if not media_exists(s.content, s.modality)]
        if problem := problem_of(conversation) or (f"{missing[0]} not found" if missing else ""):
            rejected[problem] += 1
        else:
            yield record
