"""The formats of training records, one row each: which fields a record has, and how it becomes a conversation.

A record's format is recognized by its fields, so one file may mix several. A field that the format does not know is
refused: a misspelled `input_imgs` would otherwise train on text alone.
"""

import dataclasses
import os
import pathlib
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from nextgpt_jax.data.archives import modality_of
from nextgpt_jax.data.embedded import EmbeddedMedium, Source
from nextgpt_jax.data.fields import media_of, present_fields, text_of, texts_of
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.prompts import Input, Output, Turn, human_segments, reply_segments, split_placeholders

Conversation = tuple[Turn[Source], ...]

TASKS = ("captioning", "generation", "conversation")
_PEOPLE, _MODELS = ("human", "user"), ("gpt", "assistant")


@dataclasses.dataclass(frozen=True)
class Place:
    """What a record's meaning depends on besides its fields.

    Attributes:
      task: one of TASKS.
      folder: that names of media are relative to.
      index: of the record in its file.
    """

    task: str
    folder: pathlib.Path
    index: int = 0


@dataclasses.dataclass(frozen=True)
class Format:
    """One row of Formats.

    Attributes:
      build: (fields that are not null, place) to a conversation. Raises UserError.
      description: for documentation.
      known: the fields that are read.
      unused: fields that its files have and training does not need.
      required: a record of this format has all of these fields,
      any_of: and one of these, if there are any.
    """

    build: Callable[[dict[str, Any], Place], Conversation]
    description: str
    known: Sequence[str]
    unused: Collection[str] = ()
    required: Collection[str] = ()
    any_of: Collection[str] = ()

    def fits(self, names: Collection[str]) -> bool:
        """Whether a record with these fields is of this format."""
        return all(name in names for name in self.required) and (
            not self.any_of or any(name in names for name in self.any_of)
        )


class Formats(dict[str, Format]):
    """The formats by name. A record is of the first that fits it."""

    def __init__(self) -> None:
        super().__init__(_rows())
        self._by_fields: dict[tuple[str, ...], Format] = {}

    def conversation(self, record: Any, place: Place, name: str = "", extra: Collection[str] = ()) -> Conversation:
        """The conversation of a record.

        Args:
          record: as the file has it.
          place: where it is, and what it is for.
          name: of its format; empty: by its fields.
          extra: further fields that are ignored.

        Raises:
          UserError: it is malformed, or nothing of it is what the task trains.
        """
        if not isinstance(record, dict):
            raise UserError(f"should be an object, got {reprlib.repr(record)}")
        fields = {key: value for key, value in record.items() if value is not None}
        given = tuple(fields)
        row = self[name] if name else self._by_fields.get(given) or self._recognize(given)
        for key in given:
            if key not in row.known and key not in row.unused and key not in extra:
                present_fields(fields, row.known, (*row.unused, *extra))  # raises
        conversation = row.build(fields, place)
        _check_task(conversation, place.task)
        return conversation

    def _recognize(self, names: tuple[str, ...]) -> Format:
        for row in self.values():
            if row.fits(names):
                self._by_fields[names] = row
                return row
        known = sorted({field for row in self.values() for field in row.known})
        for name in names:
            if name not in known and (hint := nearest(name, known)):
                raise UserError(f"unknown field {name!r}{hint}")
        nearest_row, row = max(self.items(), key=lambda item: sum(name in item[1].known for name in names))
        if not any(name in row.known for name in names):
            raise UserError(
                f"no known format has the fields {', '.join(map(str, names)) or '(none)'}: see docs/data.md"
            )
        lacking = [name for name in row.required if name not in names]
        wanted = ", ".join(lacking) or f"one of {', '.join(row.any_of)}"
        raise UserError(f"lacks {wanted} (format {nearest_row})")

    def check(self, name: str) -> None:
        """Checks the name of a format; empty: each record's own.

        Raises:
          UserError: there is none of this name.
        """
        if name and name not in self:
            raise UserError(f"data.format: {name!r} is not one of {', '.join(self)}{nearest(name, [*self])}")


def _check_task(conversation: Conversation, task: str) -> None:
    """Stage 1 trains what is read, stage 2 what is asked for; a record without it would train next to nothing."""
    if task == "conversation":
        return
    if task == "captioning" and not any(isinstance(s, Input) for turn in conversation for s in turn.human):
        raise UserError("has no media to read, which is what stage1 trains")
    if task == "generation" and not any(isinstance(s, Output) for turn in conversation for s in turn.assistant or ()):
        raise UserError("has no media to make, which is what stage2 trains")


def _content(medium: str | EmbeddedMedium, place: Place) -> Source:
    return medium if isinstance(medium, EmbeddedMedium) else place.folder / medium


def _pair(modality: str, medium: str | EmbeddedMedium, caption: str, place: Place) -> Conversation:
    """A medium and its caption: for stage 1 the medium is read, for stage 2 it is made."""
    if place.task == "captioning":
        return (Turn((Input(modality, _content(medium, place)), " generate a caption"), (caption,)),)
    if place.task != "generation":
        raise UserError("is a caption, for stages 1 and 2; stage3 trains on conversations")
    if modality not in output_modalities():
        raise UserError(f"{modality} cannot be generated (only {', '.join(output_modalities())})")
    return (Turn((caption,), (caption, Output(modality, caption))),)


def _caption(fields: dict[str, Any], place: Place) -> Conversation:
    found = [name for name in fields if name.endswith("_name")]
    if len(found) != 1:
        raise UserError(f"needs one of {', '.join(f'{name}_name' for name in MODALITIES)}, has {len(found)}")
    name = found[0]
    modality = name.removesuffix("_name")
    medium = fields[name] if isinstance(fields[name], EmbeddedMedium) else text_of(fields, name)
    return _pair(modality, medium, text_of(fields, "caption"), place)


def _hub_caption(fields: dict[str, Any], place: Place) -> Conversation:
    """As Parquet files of the hub have it: the medium's column is called by its modality."""
    found = [name for name in MODALITIES if name in fields]
    if len(found) != 1:
        raise UserError(f"needs one of {', '.join(MODALITIES)}, has {len(found)}")
    media = media_of(fields, found[0])
    if len(media) != 1:
        raise UserError(f"has {len(media)} {found[0]}s for one caption")
    return _pair(found[0], media[0], text_of(fields, "caption" if "caption" in fields else "text"), place)


def _cc3m(fields: dict[str, Any], place: Place) -> Conversation:
    """A row of CC3M's TSV; its image is called as img2dataset calls it, by the number of the row."""
    return _pair("image", f"{place.index:09d}.jpg", text_of(fields, "caption"), place)


def _audiocaps(fields: dict[str, Any], place: Place) -> Conversation:
    names = [f"{fields[name]}.wav" for name in ("audiocap_id", "youtube_id") if name in fields]
    return _pair("audio", _first_file(names, "audio", place), text_of(fields, "caption"), place)


def _webvid(fields: dict[str, Any], place: Place) -> Conversation:
    name = f"{fields['videoid']}.mp4"
    names = [name, *([f"{fields['page_dir']}/{name}"] if "page_dir" in fields else [])]
    return _pair("video", _first_file(names, "video", place), text_of(fields, "name"), place)


def _first_file(names: Sequence[str], modality: str, place: Place) -> str:
    """The first of the usual names of a medium that is there; of none, the first."""
    if place.task != "captioning":
        return names[0]
    paths = (resolve_media_path(place.folder / name, modality) for name in names)
    return next((name for name, path in zip(names, paths, strict=True) if path.exists()), names[0])


def resolve_media_path(path: pathlib.Path, modality: str) -> pathlib.Path:
    """`path` if it exists, or else the same file in its modality's folder there (images/, videos/, audios/, ...), or in
    the folder of its shard, as img2dataset writes it (00131/001312382.jpg); of none, the second."""
    places = _places(path, modality)
    return pathlib.Path(next(filter(os.path.exists, places), places[1]))


def media_exists(path: pathlib.Path, modality: str) -> bool:
    """Whether `resolve_media_path` finds a file."""
    return any(map(os.path.exists, _places(path, modality)))


def _places(path: pathlib.Path, modality: str) -> tuple[str, str, str]:
    # Without pathlib, which would take most of the time that reading millions of records takes.
    folder, name = os.path.split(path)
    return str(path), os.path.join(folder, f"{modality}s", name), os.path.join(folder, name[:5], name)


def _conversation(fields: dict[str, Any], place: Place) -> Conversation:
    """This project's own, and what the reference's prepare_data.py writes."""
    inputs = {name: [_content(p, place) for p in media_of(fields, f"input_{name}")] for name in MODALITIES}
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


def _llava(fields: dict[str, Any], place: Place) -> Conversation:
    """LLaVA's: one file or several, and marks where they belong. Those of videos are often `<image>`."""
    media = {name: [_content(p, place) for p in media_of(fields, name)] for name in MODALITIES}
    exchanges = _exchanges(fields["conversations"])
    return _marked(media, [(question.text, answer.text) for question, answer in exchanges])


def _messages(fields: dict[str, Any], place: Place) -> Conversation:
    """Messages of roles and contents, as chat endpoints take them."""
    media = {name: [_content(p, place) for p in media_of(fields, name)] for name in MODALITIES}
    exchanges = _exchanges(fields["messages"], "role", "content")
    return _marked(media, [(question.text, answer.text) for question, answer in exchanges])


def _marked(media: dict[str, list[Source]], texts: Sequence[tuple[str, str]]) -> Conversation:
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


def _alpaca(fields: dict[str, Any], place: Place) -> Conversation:
    given = fields.get("input") and text_of(fields, "input")
    question = "\n".join(part for part in (text_of(fields, "instruction"), given) if part)
    return (Turn((question,), (text_of(fields, "output"),)),)


def _videochat(fields: dict[str, Any], place: Place) -> Conversation:
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
        medium = () if number else (Input(media[0][0], _content(media[0][1], place)), "\n")
        turns.append(Turn((*medium, text), (answer,)))
    return tuple(turns)


def _legacy(fields: dict[str, Any], place: Place) -> Conversation:
    """The reference's first generation: what a message reads or makes is said by its `input_modality` and
    `output_modality`, and a reply's `caption` is that of the medium it makes."""
    names = [fields[name] for name in _LEGACY_NAMES if name in fields]
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
                                   {modality: [_content(name, place)]})  # fmt: skip
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


def _mosit(fields: dict[str, Any], place: Place) -> Conversation:
    """MosIT as it is generated: `<Image>name</Image>` is a medium of one of the lists, `<image>words</image>` before it
    describes it. The human's are read, the model's are made."""
    captions: dict[str, str] = {}
    for modality in _MOSIT:
        entries = fields.get(f"{modality}_list", [])
        if not isinstance(entries, list):
            raise UserError(f"{modality}_list should be a list")
        for entry in entries:
            known = present_fields(entry, (f"{modality}_name", "caption"), ("data_source", "source", "id", "url"))
            captions[text_of(known, f"{modality}_name")] = text_of(known, "caption")
    turns: list[Turn[Source]] = []
    for question, answer in _exchanges(fields["conversation"]):
        text, media = _untagged(question.text, captions)
        paths = {modality: [_content(name, place) for name in names] for modality, names in media.items()}
        reply, made = _untagged(answer.text, captions)
        wanted = {modality: [captions[name] for name in names] for modality, names in made.items()}
        turns.append(Turn(human_segments(text, paths), reply_segments(reply, wanted)))
    return tuple(turns)


_MOSIT = ("image", "video", "audio")
_TAGS = re.compile("|".join(rf"<{m}>.*?</{m}>|<{m.title()}>(?P<{m}>.*?)</{m.title()}>" for m in _MOSIT), re.DOTALL)


def _untagged(text: str, captions: Mapping[str, str]) -> tuple[str, dict[str, list[str]]]:
    """A message with marks in place of tags, and the names of the media; media that no list has are dropped."""
    media: dict[str, list[str]] = {modality: [] for modality in _MOSIT}

    def mark(tag: re.Match[str]) -> str:
        for modality in _MOSIT:
            if tag[modality] is not None and tag[modality].strip() in captions:
                media[modality].append(tag[modality].strip())
                return MODALITIES[modality].placeholder
        return ""

    return _TAGS.sub(mark, text), media


_LEGACY_NAMES = ("image_name", "video_name", "audio_name", "mm_name")


def _rows() -> dict[str, Format]:
    modalities, outputs = tuple(MODALITIES), output_modalities()
    names = [f"{name}_name" for name in modalities]
    media = [f"{name}{plural}" for name in modalities for plural in ("", "s")]
    lists = [f"{name}_list" for name in _MOSIT]
    inputs = [f"input_{name}{plural}" for name in modalities for plural in ("", "s")]
    captions = [f"{name}_caption{plural}" for name in outputs for plural in ("", "s")]
    made = [f"{name}{plural}" for output in outputs for name in (f"output_{output}", f"{output}_caption_embedding")
            for plural in ("", "s")]  # fmt: skip
    rows = {
        "mosit": Format(
            _mosit, "MosIT as generated: image_list, video_list, audio_list, tags in the text",
            ["conversation", *lists], ["id", "topic", "source_data"], required=("conversation",), any_of=lists,
        ),
        "legacy": Format(
            _legacy, "the reference's first generation, *_t2x.json among it: conversation, image_name or mm_name",
            ["conversation", *_LEGACY_NAMES], ["id", "output_modality", "source_data", "mm_id"],
            required=("conversation",),
        ),
        "captions": Format(
            _caption, "a medium and its caption: caption, and image_name or video_name or ...",
            ["caption", *names], ["id", "conversations", *(f"{name}_id" for name in modalities)], any_of=names,
        ),
        "webvid": Format(
            _webvid, "WebVid's CSV: videoid, page_dir, name",
            ["videoid", "name", "page_dir"], ["contentUrl", "duration"], required=("videoid", "name"),
        ),
        "audiocaps": Format(
            _audiocaps, "AudioCaps' CSV: audiocap_id, youtube_id, caption",
            ["youtube_id", "audiocap_id", "caption"], ["start_time"], required=("youtube_id", "caption"),
        ),
        "videochat": Format(
            _videochat, "VideoChat and VideoChat2: video or image, QA", ["QA", *media], ["id", "source"],
            required=("QA",),
        ),
        "llava": Format(
            _llava, "LLaVA: conversations with marks, and image (or video, audio; lists too)",
            ["conversations", *media], ["id", "model", "source", "dataset", "data_source", "type", "video_id"],
            required=("conversations",), any_of=media,
        ),
        "instructions": Format(
            _conversation, "this project's, and what the reference's prepare_data.py writes: conversations, "
            "input_images, image_captions, ...",
            ["conversations", *inputs, *captions], ["id", "source_data", "model", *made], required=("conversations",),
        ),
        "messages": Format(
            _messages, "chats of roles and contents: messages, images", ["messages", *media], ["id", "source"],
            required=("messages",),
        ),
        "alpaca": Format(
            _alpaca, "Alpaca: instruction, input, output", ["instruction", "input", "output"], ["id", "text"],
            required=("instruction", "output"),
        ),
        "hub": Format(
            _hub_caption, "a medium and its caption in a table: image (or video, audio), and caption or text",
            ["caption", "text", *media], ["id"], any_of=modalities,
        ),
        "cc3m": Format(
            _cc3m, "CC3M's TSV, with images called as img2dataset calls them", ["caption"], ["url"],
            required=("caption", "url"),
        ),
    }  # fmt: skip
    return rows
