"""Requests as users write them, from flags or from lines of a JSONL file, checked and turned into engine requests."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nextgpt_jax.command import nearest
from nextgpt_jax.config import DecodeDefaults
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.engine import Request
from nextgpt_jax.media import read_image
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


def make_request(
    prompt: str,
    images: Sequence[str],
    options: Mapping[str, Any],
    defaults: DecodeDefaults,
    history: Sequence[Turn] = (),
) -> Request:
    """A request from a prompt, image paths and options; options left out (or None) take the config's defaults.

    Raises:
      UserError: the prompt is empty, an image cannot be read, or marks and images do not match.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty: say what you want with --prompt")
    segments = human_segments(prompt, {"image": [read_image(path) for path in images]})
    known = {f.name for f in dataclasses.fields(defaults)} & OPTIONS.keys()
    given = {name: value for name, value in options.items() if value is not None}
    return Request((*history, Turn(segments)), **{name: getattr(defaults, name) for name in known} | given)


def read_requests(path: str, defaults: DecodeDefaults, options: Mapping[str, Any]) -> list[Request | UserError]:
    """One entry a line of the file: a request, or what is wrong with it. Image paths are relative to the file.

    `options` hold for lines that do not say otherwise.

    Raises:
      UserError: the file is missing, unreadable or has no requests.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")  # other separators may stand in JSON
    except FileNotFoundError:
        raise UserError(f"--requests: no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--requests: {path} cannot be read: {error}") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise UserError(f"--requests: {path} has no requests")
    found: list[Request | UserError] = []
    for line in lines:
        try:
            found.append(_parse(line, pathlib.Path(path).parent, defaults, options))
        except UserError as error:
            found.append(error)
    return found


def _parse(line: str, folder: pathlib.Path, defaults: DecodeDefaults, options: Mapping[str, Any]) -> Request:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError('a request is an object such as {"prompt": "draw a seven"}')
    for name, value in record.items():
        if name not in ("prompt", "images", *OPTIONS):
            raise UserError(f"unknown field {name!r}{nearest(name, ['prompt', 'images', *OPTIONS])}")
        if name in OPTIONS and (not isinstance(value, OPTIONS[name]) or isinstance(value, bool)):
            raise UserError(f"{name} should be {' or '.join(t.__name__ for t in OPTIONS[name])}, got {value!r}")
    prompt, images = record.pop("prompt", ""), record.pop("images", [])
    if not isinstance(prompt, str):
        raise UserError(f"prompt should be str, got {prompt!r}")
    if not isinstance(images, list) or not all(isinstance(p, str) for p in images):
        raise UserError("images should be a list of paths")
    return make_request(prompt, [str(folder / p) for p in images], {**options, **record}, defaults)
