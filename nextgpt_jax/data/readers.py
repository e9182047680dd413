"""Dataset files to conversations, in the reference's two formats.

Captions: [{"caption": "a dog", "image_name": "0001.jpg"}, ...], with "video_name", "audio_name" and so on for other
modalities, become, for stage 1, a request to describe the medium and its caption, for stage 2, a caption to produce.
Instructions: [{"conversations": [{"from": "human" | "gpt", "value": "... <image> ..."}, ...], "input_images": [names],
"video_captions": [captions], ...}, ...] where marks of human turns are inputs and marks of gpt turns are outputs, each
modality's in order. A single input may be written "input_image": name, and a single caption as a string.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.models.hf_config import read_json
from nextgpt_jax.prompts import Input, Output, Turn, human_segments, reply_segments

Conversation = tuple[Turn, ...]


def read_samples(kind: str, paths: str, media: str) -> list[Conversation]:
    """Reads the conversations of a stage; media stay paths below `media`, or below their file's folder if it is "".

    Args:
      kind: "describe" or "generate" for captions files, "instructions" for conversations.
      paths: one JSON file, or several separated by commas.

    Raises:
      UserError: a file is missing or a record is malformed; the message has its number.
    """
    if not paths:
        raise UserError(f"no training file: set data.{'instructions' if kind == 'instructions' else 'captions'}")
    build = {"describe": _describe, "generate": _generate, "instructions": _instruct}[kind]
    samples = []
    for path in paths.split(","):
        records = read_json(path)
        if not isinstance(records, list) or not records:
            raise UserError(f"{path} should be a list of records")
        folder = pathlib.Path(media or pathlib.Path(path).parent)
        for i, record in enumerate(records):
            try:
                samples.append(build(record, folder))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path}, record {i}: malformed ({type(error).__name__}: {error})") from None
            except UserError as error:
                raise UserError(f"{path}, record {i}: {error}") from None
    return samples


def resolve_media_path(path: pathlib.Path, modality: str) -> pathlib.Path:
    """Where a medium lies: at `path`, or in the folder of its modality beside it (images/, videos/, audios/, ...)."""
    return path if os.path.exists(path) else path.parent / f"{modality}s" / path.name


def check_files(samples: Sequence[Conversation]) -> None:
    """Checks that all media are there, so that a run does not stop at one after hours.

    Raises:
      UserError: one is not.
    """
    for number, conversation in enumerate(samples):
        for medium in (s for turn in conversation for s in turn.human if isinstance(s, Input)):
            if not os.path.exists(resolve_media_path(medium.content, medium.modality)):
                raise UserError(f"sample {number}: no such {medium.modality}: {medium.content}")


def _describe(record: dict[str, Any], media: pathlib.Path) -> Conversation:
    name = _modality(record)
    medium = Input(name, media / record[f"{name}_name"])
    return (Turn((medium, " generate a caption"), (_caption(record),)),)


def _generate(record: dict[str, Any], media: pathlib.Path) -> Conversation:
    caption, name = _caption(record), _modality(record)
    if name not in output_modalities():
        raise UserError(f"{name} cannot be produced (only {', '.join(output_modalities())})")
    return (Turn((caption,), (caption, Output(name, caption))),)


def _modality(record: dict[str, Any]) -> str:
    found = [name for name in MODALITIES if f"{name}_name" in record]
    if len(found) != 1:
        raise UserError(f"needs one of {', '.join(f'{name}_name' for name in MODALITIES)}, has {len(found)}")
    return found[0]


def _caption(record: dict[str, Any]) -> str:
    if not isinstance(record["caption"], str):
        raise UserError(f"the caption is {record['caption']!r}, not a text")
    return record["caption"]


def _instruct(record: dict[str, Any], media: pathlib.Path) -> Conversation:
    messages = record["conversations"]
    if not messages or len(messages) % 2 or any(m["from"] != ("human", "gpt")[i % 2] for i, m in enumerate(messages)):
        raise UserError("turns should alternate human, gpt")
    inputs = {name: [media / p for p in _listed(record, f"input_{name}")] for name in MODALITIES}
    captions = {name: _listed(record, f"{name}_caption") for name in output_modalities()}
    turns = []
    for i in range(0, len(messages), 2):
        question, answer = messages[i]["value"], messages[i + 1]["value"]
        asked = {n: [inputs[n].pop(0) for _ in range(min(question.count(m.placeholder), len(inputs[n])))]
                 for n, m in MODALITIES.items()}  # fmt: skip
        drawn = {n: [captions[n].pop(0) for _ in range(min(answer.count(m.placeholder), len(captions[n])))]
                 for n, m in MODALITIES.items() if n in captions}  # fmt: skip
        turns.append(Turn(human_segments(question, asked), reply_segments(answer, drawn)))
    if left := [name for name in MODALITIES if inputs[name] or captions.get(name)]:
        raise UserError(f"more {left[0]} files or captions than {MODALITIES[left[0]].placeholder} marks")
    return tuple(turns)


def _listed(record: dict[str, Any], key: str) -> list[str]:
    """record[key + "s"], or record[key] alone, as a list."""
    value = record.get(key + "s", record.get(key, []))
    values = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{key} should be texts")
    return values
