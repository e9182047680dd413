"""Dataset files to conversations, in the reference's two formats.

Captions: [{"caption": "a dog", "image_name": "0001.jpg"}, ...] become, for stage 1, a request to describe the image and
its caption, for stage 2, a caption to draw. Instructions: [{"conversations": [{"from": "human" | "gpt", "value":
"... <image> ..."}, ...], "input_images": [names], "image_captions": [captions]}, ...] where marks of human turns are
inputs and marks of gpt turns are outputs, each in order. A single input may be written "input_image": name, and a
single caption as a string.
"""

import pathlib
from typing import Any

from nextgpt_jax.errors import UserError
from nextgpt_jax.hub import read_json
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.prompts import Input, Output, Turn, human_segments, reply_segments

Conversation = tuple[Turn, ...]


def read_samples(kind: str, path: str, media: str) -> list[Conversation]:
    """Reads the conversations of a stage; media stay paths below `media`.

    Args:
      kind: "describe" or "generate" for a captions file, "instructions" for conversations.

    Raises:
      UserError: the file is missing or a record is malformed; the message has its number.
    """
    if not path:
        raise UserError(f"no training file: set data.{'instructions' if kind == 'instructions' else 'captions'}")
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} should be a list of records")
    build = {"describe": _describe, "generate": _generate, "instructions": _instruct}[kind]
    samples = []
    for i, record in enumerate(records):
        try:
            samples.append(build(record, pathlib.Path(media)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}, record {i}: malformed ({type(error).__name__}: {error})") from None
        except UserError as error:
            raise UserError(f"{path}, record {i}: {error}") from None
    return samples


def _describe(record: dict[str, Any], media: pathlib.Path) -> Conversation:
    image = Input("image", media / record["image_name"])
    return (Turn((image, " generate a caption"), (_caption(record),)),)


def _generate(record: dict[str, Any], media: pathlib.Path) -> Conversation:
    caption = _caption(record)
    return (Turn((caption,), (caption, Output("image", caption))),)


def _caption(record: dict[str, Any]) -> str:
    if not isinstance(record["caption"], str):
        raise UserError(f"the caption is {record['caption']!r}, not a text")
    return record["caption"]


def _instruct(record: dict[str, Any], media: pathlib.Path) -> Conversation:
    messages = record["conversations"]
    if len(messages) % 2 or any(m["from"] != ("human", "gpt")[i % 2] for i, m in enumerate(messages)):
        raise UserError("turns should alternate human, gpt")
    inputs = {name: [media / p for p in _listed(record, f"input_{name}")] for name in MODALITIES}
    captions = {name: _listed(record, f"{name}_caption") for name in MODALITIES}
    turns = []
    for i in range(0, len(messages), 2):
        question, answer = messages[i]["value"], messages[i + 1]["value"]
        asked = {n: [inputs[n].pop(0) for _ in range(min(question.count(m.placeholder), len(inputs[n])))]
                 for n, m in MODALITIES.items()}  # fmt: skip
        drawn = {n: [captions[n].pop(0) for _ in range(min(answer.count(m.placeholder), len(captions[n])))]
                 for n, m in MODALITIES.items()}  # fmt: skip
        turns.append(Turn(human_segments(question, asked), reply_segments(answer, drawn)))
    if left := [name for name in MODALITIES if inputs[name] or captions[name]]:
        raise UserError(f"more {left[0]} files or captions than {MODALITIES[left[0]].placeholder} marks")
    return tuple(turns)


def _listed(record: dict[str, Any], key: str) -> list[str]:
    """record[key + "s"], or record[key] alone, as a list."""
    value = record.get(key + "s", record.get(key, []))
    return [value] if isinstance(value, str) else list(value)
