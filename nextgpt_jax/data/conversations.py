"""Records that are conversations: this project's, the reference's, and those of other data sets."""

import dataclasses
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from nextgpt_jax.data.fields import media_of, present_fields, text_of, texts_of
from nextgpt_jax.data.media_files import Source, modality_of
from nextgpt_jax.data.pairs import Conversation, Place, content_of
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.prompts import Input, Turn, human_segments, reply_segments, split_placeholders

_PEOPLE, _MODELS = ("human", "user"), ("gpt", "assistant")
LEGACY_NAMES = ("image_name", "video_name", "audio_name", "mm_name")
MOSIT_MODALITIES = ("image", "video", "audio")


def instructions(fields: dict[str, Any], place: Place) -> Conversation:
    """This project's own, and what the reference's prepare_data.py writes."""
    inputs = {name: [content_of(p, place) for p in media_of(fields, f"input_{name}")] for name in MODALITIES}
    captions = {name: texts_of(fields, f"{name}_caption") for name in output_modalities()}
    turns = []
    for question, answer in _exchanges(fields.get("conversations")):
        text = _with_mark(answer, captions)
        turns.append(
            Turn(
                human_segments(question.text, _taken(inputs, question.text)),
                reply_segments(text, _taken(captions, text)),
            )
        )
    if left := [name for name in MODALITIES if inputs[name] or captions.get(name)]:
        raise UserError(f"more {left[0]} files or captions than {MODALITIES[left[0]].placeholder} placeholders")
    return tuple(turns)


def _with_mark(answer: "_Message", captions: dict[str, list[str]]) -> str:
    """An answer's text, with the mark of the medium that the message says it has and the text does not show."""
    name = answer.output_modality
    if name not in captions or MODALITIES[name].placeholder in answer.text:
        return answer.text
    if not captions[name]:
        if not answer.caption:
            raise UserError(f"has an answer with output_modality {name}, but no caption for it")
        captions[name].append(answer.caption)
    return f"{answer.text} {MODALITIES[name].placeholder}"


def _taken(media: dict[str, list[Any]], text: str) -> dict[str, list[Any]]:
    """Takes as many media as the text has marks from the beginning of the lists."""
    pieces = split_placeholders(text)
    counts = {name: min(pieces.count(("mark", name)), len(items)) for name, items in media.items()}
    return {name: [media[name].pop(0) for _ in range(count)] for name, count in counts.items()}


@dataclasses.dataclass(frozen=True)
class _Message:
    text: str
    caption: str = ""
    input_modality: str = ""
    output_modality: str = ""


def _exchanges(messages: Any, sender: str = "from", value: str = "value") -> list[tuple[_Message, _Message]]:
    """The messages of a conversation, in pairs of a human's and the model's."""
    known = (sender, value)
    optional = ("caption", "input_modality", "output_modality")
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise UserError("turns should alternate human, gpt, in a list of messages (conversations)")
    found = []
    for i, message in enumerate(messages):
        try:
            fields = present_fields(message, known, optional)
            author, text = (text_of(fields, name) for name in known)
            extras = {name: text_of(fields, name) for name in optional if name in fields}
        except UserError as error:
            raise UserError(f"message {i}: {error}") from None
        if author not in (_PEOPLE, _MODELS)[i % 2]:
            raise UserError(f"turns should alternate human, gpt; message {i} is from {reprlib.repr(author)}")
        found.append(_Message(text, **extras))
    return list(zip(found[::2], found[1::2], strict=True))


def llava(fields: dict[str, Any], place: Place) -> Conversation:
    """LLaVA's: one file or several, and marks where they belong. Those of videos are often `<image>`."""
    return _marked(fields, place, _exchanges(fields["conversations"]))


def messages(fields: dict[str, Any], place: Place) -> Conversation:
    """Messages of roles and contents, as chat endpoints take them."""
    return _marked(fields, place, _exchanges(fields["messages"], "role", "content"))


def _marked(fields: dict[str, Any], place: Place, exchanges: Sequence[tuple[_Message, _Message]]) -> Conversation:
    media = {name: [content_of(p, place) for p in media_of(fields, name)] for name in MODALITIES}
    texts = [(question.text, answer.text) for question, answer in exchanges]
    given = [name for name, items in media.items() if items]
    marks = [name for question, _ in texts for _, name in _marks(question)]
    if given == ["video"] and set(marks) == {"image"}:
        mark, own = MODALITIES["image"].placeholder, MODALITIES["video"].placeholder
        texts = [(question.replace(mark, own), answer) for question, answer in texts]
    turns = []
    for question, answer in texts:
        turns.append(Turn(human_segments(question, _taken(media, question)), reply_segments(answer, {})))
    if left := [name for name, items in media.items() if items]:
        raise UserError(
            f"has more {left[0]}s than {MODALITIES[left[0]].placeholder} marks in its messages: mark where they belong"
        )
    return tuple(turns)


def _marks(text: str) -> list[tuple[str, str]]:
    return [piece for piece in split_placeholders(text) if not isinstance(piece, str)]


def alpaca(fields: dict[str, Any], place: Place) -> Conversation:
    given = fields.get("input") and text_of(fields, "input")
    question = "\n".join(part for part in (text_of(fields, "instruction"), given) if part)
    return (Turn((question,), (text_of(fields, "output"),)),)


def videochat(fields: dict[str, Any], place: Place) -> Conversation:
    """VideoChat2's: questions and answers about one medium, with an instruction (`i`) before the first."""
    media = [(name, item) for name in MODALITIES for item in media_of(fields, name)]
    pairs = fields["QA"]
    if len(media) != 1 or not isinstance(pairs, list) or not pairs:
        raise UserError("needs one medium and a list of questions and answers (QA)")
    turns: list[Turn[Source]] = []
    for number, pair in enumerate(pairs):
        try:
            known = present_fields(pair, ("i", "q", "a"))
            question, answer = known.get("q", "") and text_of(known, "q"), text_of(known, "a")
            instruction = text_of(known, "i") if known.get("i") and not number else ""
        except UserError as error:
            raise UserError(f"QA {number}: {error}") from None
        text = " ".join(part for part in (instruction, question) if part)
        if not text:
            raise UserError(f"QA {number}: has no question")
        medium = () if number else (Input(media[0][0], content_of(media[0][1], place)), "\n")
        turns.append(Turn((*medium, text), (answer,)))
    return tuple(turns)


def legacy(fields: dict[str, Any], place: Place) -> Conversation:
    """The reference's first generation: what a message reads or makes is said by its `input_modality` and
    `output_modality`, and a reply's `caption` is that of the medium it makes."""
    names = [fields[name] for name in LEGACY_NAMES if name in fields]
    name = names[0] if names else ""
    if not isinstance(name, str):
        raise UserError(f"the name of its medium is {reprlib.repr(name)}, not a text")
    turns: list[Turn[Source]] = []
    exchanges = _exchanges(fields["conversation"])
    said = any(question.input_modality for question, _ in exchanges)
    makes = any(answer.output_modality in output_modalities() for _, answer in exchanges)
    for number, (question, answer) in enumerate(exchanges):
        modality = question.input_modality if said else "" if number or makes else modality_of(name)
        human: tuple[Any, ...] = (question.text,)
        if modality and modality != "text":
            if modality not in MODALITIES:
                raise UserError(f"input_modality: {modality!r} is not one of text, {', '.join(MODALITIES)}")
            if not name:
                raise UserError(f"has a message with input_modality {modality}, but no file")
            mark = MODALITIES[modality].placeholder
            human = human_segments(question.text if mark in question.text else f"{mark}\n{question.text}",
                                   {modality: [content_of(name, place)]})  # fmt: skip
        captions: dict[str, list[str]] = {name: [] for name in output_modalities()}
        if answer.output_modality not in ("", "text", *output_modalities()):
            raise UserError(f"{answer.output_modality} cannot be generated (only {', '.join(output_modalities())})")
        if answer.caption and not answer.output_modality:
            raise UserError("has an answer with a caption, but no output_modality")
        text = _with_mark(answer, captions)
        if answer.output_modality in captions and not captions[answer.output_modality]:
            captions[answer.output_modality] = [answer.caption] * len(_marks(text))
        turns.append(Turn(human, reply_segments(text, captions)))
    return tuple(turns)


def mosit(fields: dict[str, Any], place: Place) -> Conversation:
    """MosIT as it is generated: `<Image>name</Image>` is a medium of one of the lists, `<image>words</image>` before it
    describes it. The human's are read, the model's are made."""
    captions: dict[str, str] = {}
    for modality in MOSIT_MODALITIES:
        entries = fields.get(f"{modality}_list", [])
        if not isinstance(entries, list):
            raise UserError(f"{modality}_list should be a list")
        for entry in entries:
            known = present_fields(entry, (f"{modality}_name", "caption"), ("data_source", "source", "id", "url"))
            captions[text_of(known, f"{modality}_name")] = text_of(known, "caption")
    turns: list[Turn[Source]] = []
    for question, answer in _exchanges(fields["conversation"]):
        text, media = _untagged(question.text, captions)
        paths = {modality: [content_of(name, place) for name in names] for modality, names in media.items()}
        reply, made = _untagged(answer.text, captions)
        wanted = {modality: [captions[name] for name in names] for modality, names in made.items()}
        turns.append(Turn(human_segments(text, paths), reply_segments(reply, wanted)))
    return tuple(turns)


_TAGS = re.compile(
    "|".join(rf"<{m}>.*?</{m}>|<{m.title()}>(?P<{m}>.*?)</{m.title()}>" for m in MOSIT_MODALITIES), re.DOTALL
)


def _untagged(text: str, captions: Mapping[str, str]) -> tuple[str, dict[str, list[str]]]:
    """A message with marks in place of tags, and the names of the media; media that no list has are dropped."""
    media: dict[str, list[str]] = {modality: [] for modality in MOSIT_MODALITIES}

    def mark(tag: re.Match[str]) -> str:
        for modality in MOSIT_MODALITIES:
            if tag[modality] is not None and tag[modality].strip() in captions:
                media[modality].append(tag[modality].strip())
                return MODALITIES[modality].placeholder
        return ""

    return _TAGS.sub(mark, text), media
