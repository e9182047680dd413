"""How a conversation is laid out as text, and its token ids.

Text is tokenized piece by piece and all other ids are put between the pieces directly, so signal tokens never pass
through a tokenizer.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.prompts import Input, Output, Segment, Turn, segments_of

Side = tuple[Sequence[Segment], bool]  # segments, and whether their ids are training targets


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a transformers tokenizer; `ChatTemplate` also calls its `apply_chat_template`."""

    bos_token_id: int | None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...


class Template(abc.ABC):
    """The text around turns.

    Attributes:
      adds_bos: the conversation begins with the tokenizer's BOS, if it has one.
      join_text: tokenize the adjacent texts of a side as one, without white space next to new tokens.
      bos_per_text: BOS before a text after a medium, as the reference does when it answers.
    """

    adds_bos: ClassVar[bool] = True
    join_text: bool = False
    bos_per_text: bool = False

    @abc.abstractmethod
    def sides(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> Iterator[Side]:
        """The conversation in order; an unanswered last turn ends with the assistant's opening, ready to generate.

        Raises:
          UserError: the tokenizer does not suit the template.
        """

    @abc.abstractmethod
    def end_markers(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """The texts that end a reply.

        Raises:
          UserError: the tokenizer does not suit the template.
        """


@dataclasses.dataclass(frozen=True)
class TextTemplate(Template):
    """Fixed texts, those of NExT-GPT by default."""

    human: str = "### Human: "
    next_human: str = " Human: "
    assistant: str = "\n### Assistant: "
    end: str = "\n###"
    join_text: bool = False
    bos_per_text: bool = False

    def sides(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> Iterator[Side]:
        for i, turn in enumerate(turns):
            yield [self.next_human if i else self.human, *turn.human, self.assistant], False
            if turn.assistant is not None:
                yield [*turn.assistant, self.end], True

    def end_markers(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return (self.end, self.end.strip())


@dataclasses.dataclass(frozen=True)
class ChatTemplate(Template):
    """The chat template of the language model's own tokenizer.

    The whole conversation is rendered as text in which one character, which no message has, stands for each medium.
    """

    adds_bos: ClassVar[bool] = False  # the rendered text has it

    def sides(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> Iterator[Side]:
        mark = _unused_character(turns)
        messages = list(_messages(turns, mark))
        whole = _render(tokenizer, messages)
        closing = _closing(tokenizer, getattr(tokenizer, "chat_template", None))
        end, position = closing.rstrip(), 0
        media = filter(_is_medium, segments_of(turns))

        def segments(text: str) -> list[Segment]:
            texts = text.split(mark)
            return [texts[0], *(s for t in texts[1:] for s in (next(media), t))]

        if whole.count(mark) != sum(text.count(mark) for _, text in messages):
            raise UserError("the tokenizer's chat template drops parts of messages, which is not supported")
        for i, (role, _) in enumerate(messages):
            if role != "assistant":
                continue
            before, reply = _render(tokenizer, messages[:i]), _render(tokenizer, messages[: i + 1])
            fits = whole.startswith(reply) and reply.startswith(before) and reply[len(before) :].endswith(closing)
            if not fits or len(before) < position:
                raise UserError("the tokenizer's chat template changes earlier turns, which is not supported")
            yield segments(whole[position : len(before)]), False
            yield [*segments(reply[len(before) : -len(closing)]), end], True
            position = len(reply) - len(closing) + len(end)
        if position < len(whole):
            yield segments(whole[position:]), False

    def end_markers(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return (_closing(tokenizer, getattr(tokenizer, "chat_template", None)).rstrip(),)


def _is_medium(segment: Segment) -> bool:
    return not isinstance(segment, str)


def _unused_character(turns: Sequence[Turn]) -> str:
    texts = [s for s in segments_of(turns) if isinstance(s, str)]
    used = set().union(*texts)
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used)  # of the private use area


def _messages(turns: Sequence[Turn], mark: str) -> Iterator[tuple[str, str]]:
    """Role and content of each message."""
    for turn in turns:
        for role, side in (("user", turn.human), ("assistant", turn.assistant)):
            if side is not None:
                yield role, "".join(mark if _is_medium(s) else s for s in side)


def _render(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> str:
    """The conversation as text; after a user's message with the assistant's opening."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("model.template='chat': the language model's tokenizer has no chat template: take per_segment")
    try:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            tokenize=False,
            add_generation_prompt=messages[-1][0] == "user",
            date_string="26 Jul 2024",  # Llama's default; some of its templates would take the current date
        )
    except Exception as error:  # of the template's own, raised by jinja2
        raise UserError(f"the tokenizer's chat template refuses the conversation: {first_line(error)}") from None


@functools.lru_cache(maxsize=8)
def _closing(tokenizer: Any, template: str | None) -> str:
    """The text after a reply; computed once, not for each conversation, unless the chat template is replaced."""
    closing = _render(tokenizer, [("user", "a"), ("assistant", "\ue000")]).partition("\ue000")[2]
    if not closing.strip():
        raise UserError("the tokenizer's chat template does not mark the end of a reply, which is not supported")
    return closing


# "per_segment" tokenizes each text by itself, which suits tokenizers that keep white space as it is. "reference" gives
# the ids that the released 7B weights were trained on with sentencepiece, which prepends a space to every text.
TEMPLATES: dict[str, Template] = {
    "per_segment": TextTemplate(),
    "reference": TextTemplate(next_human="Human: ", join_text=True),
    "chat": ChatTemplate(),
}


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

    Raises:
      UserError: the tokenizer does not suit the template.
    """
    encoded = TokenizedConversation()

    def add(ids: Sequence[int], loss: bool) -> None:
        encoded.ids.extend(ids)
        encoded.loss.extend([loss] * len(ids))

    def add_bos() -> None:
        if tokenizer.bos_token_id is not None:
            add([tokenizer.bos_token_id], False)

    def add_text(text: str, loss: bool, before_new: bool) -> None:
        after_new = bool(encoded.ids) and encoded.ids[-1] >= vocabulary.base_size
        if template.join_text:
            text = text.lstrip() if after_new else text
            text = text.rstrip() if before_new else text
        if text and template.bos_per_text and after_new and encoded.ids[-1] == vocabulary.media_end:
            add_bos()
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

    if template.adds_bos:
        add_bos()
    for segments, loss in template.sides(turns, tokenizer):
        add_side(segments, loss)
    return encoded


def stop_sequences(tokenizer: Tokenizer, template: Template = TEMPLATES["per_segment"]) -> tuple[tuple[int, ...], ...]:
    """The id sequences that end a reply, tokenized as in training.

    Sentencepiece tokenizers write "###" in two ways, alone and after other text; both are listed.

    Raises:
      UserError: the tokenizer does not suit the template.
    """
    markers = template.end_markers(tokenizer)
    spellings = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in markers]
    after_text = tuple(tokenizer.encode("a" + markers[-1], add_special_tokens=False))
    first = tuple(tokenizer.encode("a", add_special_tokens=False))
    if after_text[: len(first)] == first:
        spellings.append(after_text[len(first) :])
    return tuple(dict.fromkeys(s for s in spellings if s))
