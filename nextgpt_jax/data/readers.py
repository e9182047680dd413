"""Dataset files to conversations, in the two formats of the reference.

Captions: [{"caption": "a dog", "image_name": "0001.jpg"}, ...], or "video_name", "audio_name" and so on. For the task
"captioning" (stage 1) the medium is the input and the caption the reply; for "generation" (stage 2) the caption is the
input, and the reply repeats it and asks for the medium.
Instructions, for "conversation" (stage 3): [{"conversations": [{"from": "human" | "gpt", "value": "... <image> ..."},
...], "input_images": [names], "video_captions": [captions], ...}, ...]. Placeholders in human turns are inputs, those
in gpt turns outputs, in the order of their modality's list. A single input may be written "input_image": name, and a
single caption as a string.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.models.hf_config import read_json
from nextgpt_jax.prompts import Input, Output, Turn, human_segments, reply_segments

Conversation = tuple[Turn[pathlib.Path], ...]


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
    samples = []
    for path in paths.split(","):
        records = read_json(path)
        if not isinstance(records, list) or not records:
            raise UserError(f"{path} should be a list of records")
        folder = pathlib.Path(media_root or pathlib.Path(path).parent)
        for i, record in enumerate(records):
            try:
                samples.append(build(record, folder))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path}, record {i}: malformed ({type(error).__name__}: {error})") from None
            except UserError as error:
                raise UserError(f"{path}, record {i}: {error}") from None
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


def _captioning(record: dict[str, Any], folder: pathlib.Path) -> Conversation:
    name = _modality(record)
    medium = Input(name, folder / record[f"{name}_name"])
    return (Turn((medium, " generate a caption"), (_caption(record),)),)


def _generation(record: dict[str, Any], folder: pathlib.Path) -> Conversation:
    caption, name = _caption(record), _modality(record)
    if name not in output_modalities():
        raise UserError(f"{name} cannot be generated (only {', '.join(output_modalities())})")
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


def _conversation(record: dict[str, Any], folder: pathlib.Path) -> Conversation:
    messages = record["conversations"]
    if not messages or len(messages) % 2 or any(m["from"] != ("human", "gpt")[i % 2] for i, m in enumerate(messages)):
        raise UserError("turns should alternate human, gpt")
    inputs = {name: [folder / p for p in _as_list(record, f"input_{name}")] for name in MODALITIES}
    captions = {name: _as_list(record, f"{name}_caption") for name in output_modalities()}
    turns = []
    for i in range(0, len(messages), 2):
        question, answer = messages[i]["value"], messages[i + 1]["value"]
        inputs_here = {n: [inputs[n].pop(0) for _ in range(min(question.count(m.placeholder), len(inputs[n])))]
                 for n, m in MODALITIES.items()}  # fmt: skip
        captions_here = {n: [captions[n].pop(0) for _ in range(min(answer.count(m.placeholder), len(captions[n])))]
                 for n, m in MODALITIES.items() if n in captions}  # fmt: skip
        turns.append(Turn(human_segments(question, inputs_here), reply_segments(answer, captions_here)))
    if left := [name for name in MODALITIES if inputs[name] or captions.get(name)]:
        raise UserError(f"more {left[0]} files or captions than {MODALITIES[left[0]].placeholder} placeholders")
    return tuple(turns)


def _as_list(record: dict[str, Any], key: str) -> list[str]:
    """record[key + "s"], or record[key] alone, as a list."""
    value = record.get(key + "s", record.get(key, []))
    values = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{key} should be a text, or a list of texts")
    return values
