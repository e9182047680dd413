"""Conversations: turns of segments, and how they are written with placeholders.

Each side of a turn is a list of segments: text, an input medium (its embeddings between `<Img>` and `</Img>`), or an
output medium (a group of signal tokens).
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES

Content = TypeVar("Content")


@dataclasses.dataclass(frozen=True)
class Input(Generic[Content]):
    """A medium that the model reads. `content` is a path in training data, and a preprocessed array in a request."""

    modality: str
    content: Content


@dataclasses.dataclass(frozen=True)
class Output:
    """A medium that the model asks for; `caption` is what the decoder's text encoder would be given, and `embedding`
    what it makes of it, float [L, d], in data that is prepared."""

    modality: str
    caption: str = ""
    embedding: Any = dataclasses.field(default=None, repr=False, compare=False)


Segment = str | Input | Output


@dataclasses.dataclass(frozen=True)
class Turn(Generic[Content]):
    """A human message and the assistant's reply (None: not answered yet)."""

    human: tuple[str | Input[Content] | Output, ...]
    assistant: tuple[str | Input[Content] | Output, ...] | None = None


def segments_of(turns: Iterable[Turn]) -> Iterator[Any]:
    """The segments of a conversation, one after another."""
    for turn in turns:
        yield from turn.human
        yield from turn.assistant or ()


def split_placeholders(text: str) -> list[str | tuple[str, str]]:
    """Splits text at its `<image>`, `<video>`, ... marks: strings, and ("mark", modality) for each mark."""
    names = {m.placeholder: m.name for m in MODALITIES.values()}
    split = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    pieces = [("mark", names[p]) if p in names else p for p in split]
    return [p for p in pieces if p]


def human_segments(text: str, media: Mapping[str, Sequence[Content]]) -> tuple[str | Input[Content], ...]:
    """Puts media at their marks in the text, in order; where a modality has no marks at all, they come before the text.

    Raises:
      UserError: as many marks as media are needed, where there are any.
    """
    pieces, remaining = split_placeholders(text), {name: list(items) for name, items in media.items()}
    for name, row in MODALITIES.items():
        marks, given = pieces.count(("mark", name)), len(remaining.get(name, []))
        if marks > given:
            raise UserError(
                f"the prompt has {marks} {row.placeholder} mark{'s' * (marks != 1)} but {given} {name}"
                f"{'s were' if given != 1 else ' was'} given; give one {name} for each mark"
            )
        if 0 < marks < given:
            raise UserError(
                f"{given} {name}s were given but the prompt has {marks} {row.placeholder} mark"
                f"{'s' * (marks != 1)}; mark each one, or none to put all before the text"
            )
    marked = {name for name in remaining if ("mark", name) in pieces}
    before = [Input(name, item) for name, items in remaining.items() if name not in marked for item in items]
    body = [p if isinstance(p, str) else Input(p[1], remaining[p[1]].pop(0)) for p in pieces]
    return tuple(before + body)


def reply_segments(text: str, captions: dict[str, Sequence[str]]) -> tuple[Segment, ...]:
    """An assistant's text from a dataset: each mark becomes an output with the next caption of its modality.

    Outputs come after the text of the turn, as signal tokens do in training; white space around marks is dropped.

    Raises:
      UserError: a mark has no caption.
    """
    pieces, remaining = split_placeholders(text), {name: list(items) for name, items in captions.items()}
    outputs = []
    for piece in pieces:
        if not isinstance(piece, str):
            if not remaining.get(piece[1]):
                raise UserError(f"no caption for a {MODALITIES[piece[1]].placeholder} in the reply {text!r}")
            outputs.append(Output(piece[1], remaining[piece[1]].pop(0)))
    words = " ".join(p.strip() for p in pieces if isinstance(p, str) and p.strip())
    return ((words,) if words else ()) + tuple(outputs)
