"""Conversations to token ids and back.

A conversation is a list of turns; each side of a turn is a list of segments: text, an input medium (its embeddings
between `<Img>` and `</Img>`), or an output medium (a group of signal tokens). Text pieces are tokenized one by one and
all other ids are put between them directly, so signal tokens never pass through a tokenizer.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, Vocabulary


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...


Content = TypeVar("Content")


@dataclasses.dataclass(frozen=True)
class Input(Generic[Content]):
    """A medium that the model reads. `content` is a path in training data, and a preprocessed array in a request."""

    modality: str
    content: Content


@dataclasses.dataclass(frozen=True)
class Output:
    """A medium that the model asks for; `caption` is what the decoder's text encoder would be given."""

    modality: str
    caption: str = ""


Segment = str | Input | Output


@dataclasses.dataclass(frozen=True)
class Turn(Generic[Content]):
    """A human message and the assistant's reply (None: not answered yet)."""

    human: tuple[str | Input[Content] | Output, ...]
    assistant: tuple[str | Input[Content] | Output, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Template:
    """The text around turns, and how texts become ids."""

    human: str = "### Human: "
    next_human: str = " Human: "
    assistant: str = "\n### Assistant: "
    end: str = "\n###"
    join_text: bool = False  # tokenize the adjacent texts of a side as one, without white space next to new tokens
    bos_per_text: bool = False  # BOS before a text after a medium, as the reference does when it answers


# "per_segment" tokenizes each text by itself, which suits tokenizers that keep white space as it is. "reference" gives
# the ids that the released 7B weights were trained on with sentencepiece, which prepends a space to every text.
TEMPLATES = {"per_segment": Template(), "reference": Template(next_human="Human: ", join_text=True)}


@dataclasses.dataclass
class TokenizedConversation:
    """A conversation as ids. Positions index `ids` and are the first of a segment; at an input's, `ids` has zeros to be
    replaced by its embeddings."""

    ids: list[int] = dataclasses.field(default_factory=list)
    loss: list[bool] = dataclasses.field(default_factory=list)  # is this id a training target?
    inputs: list[tuple[int, Input]] = dataclasses.field(default_factory=list)
    outputs: list[tuple[int, Output]] = dataclasses.field(default_factory=list)


def tokenize_conversation(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    template: Template = TEMPLATES["per_segment"],
    num_embeddings: Mapping[str, int] | None = None,
) -> TokenizedConversation:
    """Builds the ids of a conversation; an unanswered last turn ends with the assistant's opening, ready to generate.

    The loss covers the assistant's segments and the end marker of every answered turn. An input medium takes as many
    positions as `num_embeddings` has for its modality (1 by default).
    """
    encoded = TokenizedConversation(ids=[tokenizer.bos_token_id], loss=[False])

    def add(ids: Sequence[int], loss: bool) -> None:
        encoded.ids.extend(ids)
        encoded.loss.extend([loss] * len(ids))

    def add_text(text: str, loss: bool, before_new: bool) -> None:
        if template.join_text:
            text = text.lstrip() if encoded.ids[-1] >= vocabulary.base_size else text
            text = text.rstrip() if before_new else text
        if text and template.bos_per_text and encoded.ids[-1] == vocabulary.media_end:
            add([tokenizer.bos_token_id], False)
        if text:
            add(tokenizer.encode(text, add_special_tokens=False), loss)

    def add_side(segments: Sequence[Segment], loss: bool) -> None:
        if template.join_text:
            runs = itertools.groupby(segments, key=lambda s: isinstance(s, str))
            segments = [s for is_text, run in runs for s in (["".join(run)] if is_text else run)]
        for segment, following in itertools.zip_longest(segments, segments[1:], fillvalue=""):
            if isinstance(segment, str):
                add_text(segment, loss, before_new=not isinstance(following, str))
            elif isinstance(segment, Input):
                add([vocabulary.media_begin], False)
                encoded.inputs.append((len(encoded.ids), segment))
                count = (num_embeddings or {}).get(segment.modality, 1)
                add([*[0] * count, vocabulary.media_end], False)
            else:
                encoded.outputs.append((len(encoded.ids), segment))
                add(vocabulary.signal_ids(segment.modality), loss)

    for i, turn in enumerate(turns):
        add_side([template.next_human if i else template.human, *turn.human, template.assistant], False)
        if turn.assistant is not None:
            add_side([*turn.assistant, template.end], True)
    return encoded


def stop_sequences(tokenizer: Tokenizer, template: Template = TEMPLATES["per_segment"]) -> tuple[tuple[int, ...], ...]:
    """The id sequences that end a reply: the end marker with and without its newline, tokenized as in training.

    Sentencepiece tokenizers write "###" in two ways, alone and after other text; both are listed.
    """
    marker = template.end.strip()
    spellings = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (template.end, marker)]
    after_text = tuple(tokenizer.encode("a" + marker, add_special_tokens=False))
    first = tuple(tokenizer.encode("a", add_special_tokens=False))
    if after_text[: len(first)] == first:
        spellings.append(after_text[len(first) :])
    return tuple(dict.fromkeys(s for s in spellings if s))


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
