"""Requests as users write them, from flags or from lines of a JSONL file, checked and turned into engine requests."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nextgpt_jax import media
from nextgpt_jax.config import GenerationConfig
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.inference.types import Request
from nextgpt_jax.inference.validation import check_options, check_readable
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.prompts import Turn, human_segments

# Options of a request beside prompt and media, and the types that JSON may give them.
OPTIONS: dict[str, tuple[type, ...]] = {
    "seed": (int,),
    "modality": (str,),
    "steps": (int,),
    "guidance": (int, float),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "max_new_tokens": (int,),
}

Record = dict[str, Any]  # a checked line of a file of requests: "prompt", "paths" by modality, "options"


def make_request(
    prompt: str,
    paths: Mapping[str, Sequence[Any]],
    options: Mapping[str, Any],
    model: NExTGPTConfig,
    defaults: GenerationConfig,
    history: Sequence[Turn] = (),
) -> Request:
    """A request from a prompt, media files by modality, and options; those left out (or None) take the defaults.

    Raises:
      UserError: the prompt is empty, an option is out of range, a file cannot be read, marks and media do not match.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty: say what you want")
    try:
        prompt.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, in JSON or in the terminal's bytes
        raise UserError("the prompt is not valid Unicode") from None
    for name in (name for name, given in paths.items() if given):
        check_readable(name, model)
    known = {f.name for f in dataclasses.fields(defaults)} & OPTIONS.keys()
    given = {name: value for name, value in options.items() if value is not None}
    request = Request((), **{name: getattr(defaults, name) for name in known} | given)
    check_options(request, model, defaults)
    contents = {name: [media.load(name, path, model.encoder) for path in given] for name, given in paths.items()}
    turn = Turn(human_segments(prompt, {name: found for name, found in contents.items() if found}))
    return dataclasses.replace(request, turns=(*history, turn))


def read_requests(path: str) -> list[Record | UserError]:
    """One entry a line of the file: a record, or what is wrong with it. Paths of media are relative to the file.

    Raises:
      UserError: the file is missing, unreadable or has no requests.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").split("\n")  # other separators may stand in JSON
    except FileNotFoundError:
        raise UserError(f"--requests: no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--requests: {path} cannot be read: {error}") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise UserError(f"--requests: {path} has no requests")
    found: list[Record | UserError] = []
    for line in lines:
        try:
            found.append(_parse(line, pathlib.Path(path).parent))
        except UserError as error:
            found.append(error)
    return found


def _parse(line: str, folder: pathlib.Path) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers may be too long, and lists too deep
        raise UserError(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError('a request is an object such as {"prompt": "draw a seven"}')
    lists = {f"{name}s": name for name in MODALITIES}
    fields = ["prompt", *lists, *OPTIONS]
    for name, value in record.items():
        if name not in fields:
            raise UserError(f"unknown field {name!r}{nearest(name, fields)}")
        if name in OPTIONS and (not isinstance(value, OPTIONS[name]) or isinstance(value, bool)):
            raise UserError(f"{name} should be {' or '.join(t.__name__ for t in OPTIONS[name])}, got {value!r}")
        if name in lists and not (isinstance(value, list) and all(isinstance(p, str) for p in value)):
            raise UserError(f"{name} should be a list of paths")
    prompt = record.get("prompt", "")
    if not isinstance(prompt, str):
        raise UserError(f"prompt should be str, got {prompt!r}")
    paths = {name: [str(folder / p) for p in record.get(key, [])] for key, name in lists.items()}
    return {"prompt": prompt, "paths": paths, "options": {k: v for k, v in record.items() if k in OPTIONS}}
