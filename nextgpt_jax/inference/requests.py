"""Requests from a prompt with files, and from the lines of a JSONL file."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nextgpt_jax import media
from nextgpt_jax.config import GenerationDefaults
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.files import is_remote
from nextgpt_jax.inference import editing
from nextgpt_jax.inference.types import Request
from nextgpt_jax.inference.validation import check_options, check_readable
from nextgpt_jax.json_files import parse_json, read_text, reading_text
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.prompts import Turn, human_segments


class Option(NamedTuple):
    """An option of a request."""

    field: str  # of Request, or one of editing.OPTIONS
    types: tuple[type, ...]  # in JSON


OPTIONS: dict[str, Option] = {  # by the name of the flag and of the JSON field
    "seed": Option("seed", (int,)),
    "modality": Option("modality", (str,)),
    "steps": Option("num_inference_steps", (int,)),
    "guidance": Option("guidance_scale", (int, float)),
    "sampler": Option("sampler", (str,)),
    "temperature": Option("temperature", (int, float)),
    "top_k": Option("top_k", (int,)),
    "top_p": Option("top_p", (int, float)),
    "max_new_tokens": Option("max_new_tokens", (int,)),
    "edit": Option("edit", (str,)),
    "strength": Option("strength", (int, float)),
    "inversion": Option("inversion", (bool,)),
}


class Record(NamedTuple):
    """A line of a requests file: arguments of `make_request`."""

    prompt: str
    paths: dict[str, list[str]]
    options: dict[str, Any]


def make_request(
    prompt: str,
    paths: Mapping[str, Sequence[Any]],
    options: Mapping[str, Any],
    model: NExTGPTConfig,
    defaults: GenerationDefaults,
    history: Sequence[Turn] = (),
) -> Request:
    """A request from a prompt and input files.

    Args:
      paths: input files by modality.
      options: fields of Request, with editing.OPTIONS in place of `edit`; those that are missing or None take the
        defaults. What is edited is generated, if "modality" is not given.
      model: the config of the model that will answer.
      history: the turns before.

    Raises:
      UserError: the prompt is empty, an option is out of range, a file cannot be read, or the placeholders in the
        prompt do not match the files.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, from JSON or undecodable terminal input
        raise UserError("the prompt is not valid Unicode") from None
    for name in (name for name, given in paths.items() if given):
        check_readable(name, model)
    fields = {option.field for option in OPTIONS.values()}
    known = {f.name for f in dataclasses.fields(defaults)} & fields
    given = {name: value for name, value in options.items() if value is not None}
    if edit := editing.load_edit(given, paths, model, defaults):
        given = {"modality": edit.modality} | given
    given = {name: value for name, value in given.items() if name not in editing.OPTIONS}
    request = Request((), edit=edit, **{name: getattr(defaults, name) for name in known} | given)
    check_options(request, model, defaults)
    contents = {
        name: [media.load(name, path, model.input_encoders[name]) for path in given] for name, given in paths.items()
    }
    turn = Turn(human_segments(prompt, {name: found for name, found in contents.items() if found}))
    return dataclasses.replace(request, turns=(*history, turn))


class RequestFile:
    """A JSON lines file of requests, read line by line.

    Attributes:
      count: requests; blank lines are none.
      digest: SHA-256 of the file.
    """

    def __init__(self, path: str, flag: str = "--requests"):
        """
        Args:
          flag: the option that gave `path`, for error messages.

        Raises:
          UserError: the file is missing, unreadable, not UTF-8, or has no requests.
        """
        self.path, self._flag = path, flag
        digest = hashlib.sha256()
        self.count = 0
        for line in self._lines():
            digest.update(line.encode())
            self.count += 1
        self.digest = digest.hexdigest()
        if not self.count:
            raise UserError(f"{flag}: {path} has no requests")

    def __iter__(self) -> Iterator[Record | UserError]:
        """The requests; an error in place of a line that is not valid. Paths of media are relative to the file."""
        for line in self._lines():
            try:
                yield parse_request(line, pathlib.Path(self.path).parent)
            except UserError as error:
                yield error

    def _lines(self) -> Iterator[str]:
        try:
            if is_remote(self.path):
                yield from (line for line in read_text(self.path).split("\n") if line.strip())
                return
            with reading_text(self.path), pathlib.Path(self.path).open(encoding="utf-8-sig", newline="\n") as file:
                yield from (line for line in file if line.strip())
        except UserError as error:
            raise UserError(f"{self._flag}: {error}") from None


def parse_request(line: str, folder: pathlib.Path) -> Record:
    """The request in a line of a requests file; paths of media are relative to `folder`.

    Raises:
      UserError: it is not valid JSON, not an object, or has a field that is unknown or of the wrong type.
    """
    record = parse_json(line)
    if not isinstance(record, dict):
        raise UserError('a request is an object such as {"prompt": "draw a seven"}')
    lists = {f"{name}s": name for name in MODALITIES}
    fields = ["prompt", *lists, *OPTIONS]
    for name, value in record.items():
        if name not in fields:
            raise UserError(f"unknown field {name!r}{nearest(name, fields)}")
        if name in lists and not (isinstance(value, list) and all(isinstance(p, str) for p in value)):
            raise UserError(f"{name} should be a list of paths")
        if name in OPTIONS:
            types = OPTIONS[name].types
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):  # bool is an int
                raise UserError(f"{name} should be {' or '.join(t.__name__ for t in types)}, got {value!r}")
    prompt = record.get("prompt", "")
    if not isinstance(prompt, str):
        raise UserError(f"prompt should be str, got {prompt!r}")
    paths = {name: [str(folder / p) for p in record.get(key, [])] for key, name in lists.items()}
    options = {option.field: record[name] for name, option in OPTIONS.items() if name in record}
    return Record(prompt, paths, options)
