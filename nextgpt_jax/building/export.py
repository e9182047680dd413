"""Instruction data in the reference's formats: T2M with captions in its messages, all else as raw MosIT."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nextgpt_jax.data.conversations import MOSIT_MODALITIES
from nextgpt_jax.data.fields import media_of, texts_of
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.prompts import split_placeholders

_MADE = {"image": ("i", "jpg"), "video": ("v", "mp4"), "audio": ("a", "wav")}  # as the reference calls media to make


def to_reference(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records of this project's schema in the reference's formats.

    One exchange that asks for one medium becomes a T2M record, whose answer has `caption` and `output_modality`, with
    the name of its caption embedding; everything else becomes MosIT as it is before prepare_data.py:
    `<Image>name</Image>` in the text, and the media in lists. Media to make get names, as there: no file has them.

    Raises:
      UserError: a record has media that these formats have no place for.
    """
    for number, record in enumerate(records):
        try:
            converted = _t2m(record, number) if _is_t2m(record) else _mosit(record, number)
        except UserError as error:
            raise UserError(f"record {number}: {error}") from None
        yield converted


def _captions(record: Mapping[str, Any]) -> dict[str, list[str]]:
    return {name: texts_of(record, f"{name}_caption") for name in MODALITIES}


def _inputs(record: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: media_of(record, f"input_{name}") for name in MODALITIES}


def _is_t2m(record: Mapping[str, Any]) -> bool:
    made = sum(map(len, _captions(record).values()))
    return len(record["conversations"]) == 2 and made == 1 and not any(_inputs(record).values())


def _t2m(record: Mapping[str, Any], number: int) -> dict[str, Any]:
    ((name, (caption,)),) = [(name, texts) for name, texts in _captions(record).items() if texts]
    question, answer = record["conversations"]
    extra = {key: record[key] for key in ("source_data",) if key in record}
    return {
        f"{name}_captions": [caption],
        f"{name}_caption_embeddings": [f"t2m_{_name(name, number, 0)}.npy"],
        "conversations": [
            {"from": "human", "value": question["value"], "input_modality": "text"},
            {"from": "gpt", "value": answer["value"], "caption": caption, "output_modality": name},
        ],
        **extra,
    }


def _mosit(record: Mapping[str, Any], number: int) -> dict[str, Any]:
    inputs, captions = _inputs(record), _captions(record)
    if other := [name for name in MODALITIES if name not in MOSIT_MODALITIES and (inputs[name] or captions[name])]:
        raise UserError(f"has {other[0]}, which the reference's MosIT has no list for")
    lists: dict[str, list[dict[str, str]]] = {f"{name}_list": [] for name in MOSIT_MODALITIES}
    numbers = {name: itertools.count() for name in MOSIT_MODALITIES}
    conversation = []
    for message in record["conversations"]:
        human = message["from"] in ("human", "user")
        pieces = []
        for piece in split_placeholders(message["value"]):
            if isinstance(piece, str):
                pieces.append(_untagged(piece))
                continue
            name = piece[1]
            medium = _next(inputs[name], name) if human else f"mosit_{_name(name, number, next(numbers[name]))}"
            caption = "" if human else _next(captions[name], name)
            if human and not isinstance(medium, str):
                raise UserError(f"has {name} {medium} inside another file, which MosIT cannot refer to")
            lists[f"{name}_list"].append({f"{name}_name": medium, "data_source": "mosit", "caption": caption})
            pieces.append(f"<{name.title()}>{medium}</{name.title()}>")
        conversation.append({"from": "human" if human else "gpt", "value": "".join(pieces)})
    if left := [name for name in MODALITIES if inputs[name] or captions[name]]:
        raise UserError(f"has more {left[0]} files or captions than {MODALITIES[left[0]].placeholder} marks")
    return {**lists, "conversation": conversation}


def _untagged(text: str) -> str:
    """A text without what MosIT's readers would take for tags."""
    names = "|".join(MOSIT_MODALITIES)
    if re.search(rf"</?(?:{names})>", text, re.IGNORECASE):
        raise UserError("has a text with a tag in it")
    return text


def _next(items: list[Any], name: str) -> Any:
    if not items:
        raise UserError(f"has more {MODALITIES[name].placeholder} marks than {name} files or captions")
    return items.pop(0)


def _name(modality: str, number: int, count: int) -> str:
    letter, suffix = _MADE[modality]
    return f"{letter}_{number:07d}_{count:02d}.{suffix}"
