"""Dataset files to conversations, in the two formats of the reference: a JSON list of records, or JSON lines.

Captions: {"caption": "a dog", "image_name": "0001.jpg"}, or "video_name", "audio_name" and so on. For the task
"captioning" (stage 1) the medium is the input and the caption the reply; for "generation" (stage 2) the caption is the
input, and the reply repeats it and asks for the medium.
Instructions, for "conversation" (stage 3): {"conversations": [{"from": "human" | "gpt", "value": "... <image> ..."},
...], "input_images": [names], "video_captions": [captions], ...}. Placeholders in human turns are inputs, those in gpt
turns outputs, in the order of their modality's list. A single input may be written "input_image": name, and a single
caption as a string.

A field that is null is absent. Fields that are neither above nor in the reference's files are refused.
"""

import os
import pathlib
import reprlib
from collections.abc import Collection, Sequence
from typing import Any

from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.json_files import json_lines, parse_json, read_text
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.prompts import Input, Output, Turn, human_segments, reply_segments

Conversation = tuple[Turn[pathlib.Path], ...]

_LINES_SUFFIXES = (".jsonl", ".ndjson")
_MESSAGE_FIELDS = ("from", "value")
_UNUSED_MESSAGE_FIELDS = ("caption", "input_modality", "output_modality")  # in the reference's files


def read_samples(task: str, paths: str, media_root: str) -> list[Conversation]:
    """Reads dataset files. Media are not opened: inputs hold their paths.

    Args:
      task: "captioning" or "generation" for captions files, "conversation" for instruction files.
      paths: one JSON file, or several separated by commas.
      media_root: the folder that media paths are relative to; empty: the folder of their JSON file.

    Raises:
      UserError: a file is missing or a record is malformed; the message has its number.
    """
    if not paths:
        raise UserError(f"no training file: set data.{'instructions' if task == 'conversation' else 'captions'}")
    build = {"captioning": _captioning, "generation": _generation, "conversation": _conversation}[task]
    known, unused = _instruction_fields() if task == "conversation" else _caption_fields()
    samples = []
    for path in paths.split(","):
        folder = pathlib.Path(media_root or pathlib.Path(path).parent)
        for place, record in _records(path):
            try:
                samples.append(build(_fields(record, known, unused), folder))
            except UserError as error:
                raise UserError(f"{path}, {place}: {error}") from None
    return samples


def resolve_media_path(path: pathlib.Path, modality: str) -> pathlib.Path:
    """`path` if it exists, or else the same file in its modality's folder there (images/, videos/, audios/, ...)."""
    return path if os.path.exists(path) else path.parent / f"{modality}s" / path.name


def check_files(samples: Sequence[Conversation]) -> None:
    """Checks that all media exist, so that a missing file fails at start-up.

    Raises:
      UserError: one is missing.
    """
    for number, conversation in enumerate(samples):
        for medium in (s for turn in conversation for s in turn.human if isinstance(s, Input)):
            if not os.path.exists(resolve_media_path(medium.content, medium.modality)):
                raise UserError(f"sample {number}: no such {medium.modality}: {medium.content}")


def _records(path: str) -> list[tuple[str, Any]]:
    """The records of a file, each with its place for messages: "record 0", or "line 1" of JSON lines."""
    text, is_lines = read_text(path), pathlib.Path(path).suffix.lower() in _LINES_SUFFIXES
    refusal = UserError(f"{path} should be a list of records, or JSON lines: .jsonl, one record per line")
    try:
        whole = parse_json(text)
    except UserError as error:
        if not is_lines and not text.lstrip().startswith("{"):
            raise UserError(f"{path} is {error}") from None
    else:
        if isinstance(whole, list) and whole:
            return [(f"record {i}", record) for i, record in enumerate(whole)]
        if not isinstance(whole, dict) or not is_lines:
            raise refusal
    records = []
    for number, line in json_lines(text):
        try:
            records.append((f"line {number}", parse_json(line)))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not records:
        raise refusal
    return records


def _caption_fields() -> tuple[list[str], list[str]]:
    """The fields of a record of captions, and those of the reference's files that training does not use."""
    ids = [f"{name}_id" for name in MODALITIES]
    return ["caption", *(f"{name}_name" for name in MODALITIES)], ["id", *ids, "conversations"]


def _instruction_fields() -> tuple[list[str], list[str]]:
    """The same for a record of instructions."""
    inputs = [f"input_{name}" for name in MODALITIES]
    captions = [f"{name}_caption" for name in output_modalities()]
    unused = [f"output_{name}" for name in output_modalities()] + [f"{name}_embedding" for name in captions]
    known = [name + plural for name in (*inputs, *captions) for plural in ("", "s")]
    return ["conversations", *known], ["id", "source_data", *unused, *(f"{name}s" for name in unused)]


def _fields(record: Any, known: Collection[str], unused: Collection[str]) -> dict[str, Any]:
    """The fields of a record or message that are not null.

    Raises:
      UserError: it is no object, or has a field that is in neither list.
    """
    if not isinstance(record, dict):
        raise UserError(f"should be an object, got {reprlib.repr(record)}")
    found = {name: value for name, value in record.items() if value is not None}
    if unknown := [name for name in found if name not in known and name not in unused]:
        name = unknown[0]
        raise UserError(f"unknown field {reprlib.repr(name)} (known: {', '.join(known)}){nearest(name, known)}")
    return found


def _text(record: dict[str, Any], name: str) -> str:
    if name not in record:
        raise UserError(f"lacks {name}")
    if not isinstance(record[name], str):
        raise UserError(f"{name} is {reprlib.repr(record[name])}, not a text")
    return record[name]


def _captioning(record: dict[str, Any], folder: pathlib.Path) -> Conversation:
    name = _modality(record)
    medium = Input(name, folder / _text(record, f"{name}_name"))
    return (Turn((medium, " generate a caption"), (_text(record, "caption"),)),)


def _generation(record: dict[str, Any], folder: pathlib.Path) -> Conversation:
    caption, name = _text(record, "caption"), _modality(record)
    if name not in output_modalities():
        raise UserError(f"{name} cannot be generated (only {', '.join(output_modalities())})")
    return (Turn((caption,), (caption, Output(name, caption))),)


def _modality(record: dict[str, Any]) -> str:
    found = [name for name in MODALITIES if f"{name}_name" in record]
    if len(found) != 1:
        raise UserError(f"needs one of {', '.join(f'{name}_name' for name in MODALITIES)}, has {len(found)}")
    return found[0]


def _conversation(record: dict[str, Any], folder: pathlib.Path) -> Conversation:
    messages = _messages(record.get("conversations"))
    inputs = {name: [folder / p for p in _as_list(record, f"input_{name}")] for name in MODALITIES}
    captions = {name: _as_list(record, f"{name}_caption") for name in output_modalities()}
    turns = []
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        inputs_here = {n: [inputs[n].pop(0) for _ in range(min(question.count(m.placeholder), len(inputs[n])))]
                 for n, m in MODALITIES.items()}  # fmt: skip
        captions_here = {n: [captions[n].pop(0) for _ in range(min(answer.count(m.placeholder), len(captions[n])))]
                 for n, m in MODALITIES.items() if n in captions}  # fmt: skip
        turns.append(Turn(human_segments(question, inputs_here), reply_segments(answer, captions_here)))
    if left := [name for name in MODALITIES if inputs[name] or captions.get(name)]:
        raise UserError(f"more {left[0]} files or captions than {MODALITIES[left[0]].placeholder} placeholders")
    return tuple(turns)


def _messages(messages: Any) -> list[str]:
    """The texts of a conversation's messages, of human and gpt in turn."""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise UserError("turns should alternate human, gpt, in a list of messages (conversations)")
    texts = []
    for i, message in enumerate(messages):
        try:
            fields = _fields(message, _MESSAGE_FIELDS, _UNUSED_MESSAGE_FIELDS)
            sender, text = (_text(fields, name) for name in _MESSAGE_FIELDS)
        except UserError as error:
            raise UserError(f"message {i}: {error}") from None
        if sender != ("human", "gpt")[i % 2]:
            raise UserError(f"turns should alternate human, gpt; message {i} is from {reprlib.repr(sender)}")
        texts.append(text)
    return texts


def _as_list(record: dict[str, Any], name: str) -> list[str]:
    """The texts of the field `name` or its plural, of which a record may have one."""
    given = [key for key in (name, f"{name}s") if key in record]
    if len(given) > 1:
        raise UserError(f"has both {given[0]} and {given[1]}: give one")
    value = record[given[0]] if given else []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{name} should be a text, or a list of texts")
    return values
