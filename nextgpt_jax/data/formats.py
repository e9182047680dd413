"""The formats of training records, one row each: which fields a record has, and how it becomes a conversation.

A record's format is recognized by its fields, so one file may mix several. A field that the format does not know is
refused: a misspelled `input_imgs` would otherwise train on text alone.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from nextgpt_jax.data import conversations, pairs
from nextgpt_jax.data.fields import refuse_unknown
from nextgpt_jax.data.pairs import Conversation, Place
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.prompts import Input, Output

TASKS = ("captioning", "generation", "conversation")


@dataclasses.dataclass(frozen=True)
class Format:
    """One row of Formats.

    Attributes:
      build: (fields that are not null, place) to a conversation. Raises UserError.
      known: the fields that are read.
      unused: fields that its files have and training does not need.
      required: a record of this format has all of these fields,
      any_of: and one of these, if there are any.
    """

    build: Callable[[dict[str, Any], Place], Conversation]
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
        refuse_unknown(given, row.known, row.unused, extra)
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
    reads = task == "captioning"
    for turn in conversation:
        for segment in turn.human if reads else turn.assistant or ():
            if isinstance(segment, Input if reads else Output):
                return
    raise UserError(f"has no media to {'read, which is what stage1' if reads else 'make, which is what stage2'} trains")


def _rows() -> dict[str, Format]:
    modalities, outputs = tuple(MODALITIES), output_modalities()
    names = [f"{name}_name" for name in modalities]
    media = [f"{name}{plural}" for name in modalities for plural in ("", "s")]
    lists = [f"{name}_list" for name in conversations.MOSIT_MODALITIES]
    inputs = [f"input_{name}{plural}" for name in modalities for plural in ("", "s")]
    captions = [f"{name}_caption{plural}" for name in outputs for plural in ("", "s")]
    made = [f"{name}{plural}" for output in outputs for name in (f"output_{output}", f"{output}_caption_embedding")
            for plural in ("", "s")]  # fmt: skip
    rows = {
        "mosit": Format(
            conversations.mosit,
            ["conversation", *lists], ["id", "topic", "source_data"], required=("conversation",), any_of=lists,
        ),
        "legacy": Format(
            conversations.legacy,
            ["conversation", *conversations.LEGACY_NAMES], ["id", "output_modality", "source_data", "mm_id"],
            required=("conversation",),
        ),
        "captions": Format(
            pairs.caption,
            ["caption", *names], ["id", "conversations", *(f"{name}_id" for name in modalities)], any_of=names,
        ),
        "webvid": Format(
            pairs.webvid, ["videoid", "name", "page_dir"], ["contentUrl", "duration"], required=("videoid", "name"),
        ),
        "audiocaps": Format(
            pairs.audiocaps,
            ["youtube_id", "audiocap_id", "caption"], ["start_time"], required=("youtube_id", "caption"),
        ),
        "videochat": Format(
            conversations.videochat, ["QA", *media], ["id", "source"], required=("QA",),
        ),
        "llava": Format(
            conversations.llava,
            ["conversations", *media], ["id", "model", "source", "dataset", "data_source", "type", "video_id"],
            required=("conversations",), any_of=media,
        ),
        "instructions": Format(
            conversations.instructions,
            ["conversations", *inputs, *captions], ["id", "source_data", "model", *made], required=("conversations",),
        ),
        "messages": Format(
            conversations.messages, ["messages", *media], ["id", "source"], required=("messages",),
        ),
        "alpaca": Format(
            conversations.alpaca,
            ["instruction", "input", "output"], ["id", "text"], required=("instruction", "output"),
        ),
        "hub": Format(
            pairs.hub_caption, ["caption", "text", *media], ["id"], any_of=modalities,
        ),
        "cc3m": Format(
            pairs.cc3m, ["caption"], ["url"], required=("caption", "url"),
        ),
    }  # fmt: skip
    return rows
