"""Files of built records: written at once or not at all, and read back as training reads them."""

import collections
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nextgpt_jax.data.formats import Formats
from nextgpt_jax.data.media_files import media_exists
from nextgpt_jax.data.pairs import Conversation, Place
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import atomic_write, check_folder
from nextgpt_jax.prompts import Input

SUFFIXES = (".json", ".jsonl")


class Checked(NamedTuple):
    """Records that training reads, and the number of the others, by reason."""

    records: list[dict[str, Any]]
    rejected: collections.Counter[str]


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


def write_records(path: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes a list, or lines if the file is called .jsonl.

    Raises:
      UserError: it cannot be written; the file is then as it was.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        else:
            json.dump(list(records), file, ensure_ascii=False, indent=1)
            file.write("\n")


def read_records(path: str) -> list[dict[str, Any]]:
    """The records of a file in this project's schema, as they are there.

    Raises:
      UserError: it cannot be read, or has records of another schema.
    """
    row, records = Formats()["instructions"], []
    for file in read_samples("conversation", path).files:
        for number in range(len(file.records)):
            record = file.records[number]
            if not isinstance(record, dict) or not row.fits(record) or not set(record) <= {*row.known, *row.unused}:
                raise UserError(
                    f"{path}, {file.records.place(number)} is of another schema: give a file with conversations, "
                    "input_images, image_captions, ... (docs/data.md)"
                )
            records.append(record)
    return records


def check_records(
    records: Sequence[dict[str, Any]],
    folder: pathlib.Path,
    problem_of: Callable[[Conversation], str] = lambda conversation: "",
) -> Checked:
    """Reads records as stage 3 does, and looks for their media.

    Args:
      folder: that names of media are relative to.
      problem_of: what a conversation lacks; empty: nothing.
    """
    formats, kept = Formats(), []
    rejected: collections.Counter[str] = collections.Counter()
    for record in records:
        try:
            conversation = formats.conversation(record, Place("conversation", folder))
        except UserError as error:
            rejected[str(error)] += 1
            continue
        media = [s for turn in conversation for s in turn.human if isinstance(s, Input)]
        if problem := problem_of(conversation):
            rejected[problem] += 1
        elif missing := [s.modality for s in media if not media_exists(s.content, s.modality)]:
            rejected[f"{missing[0]} not found"] += 1
        else:
            kept.append(record)
    return Checked(kept, rejected)
