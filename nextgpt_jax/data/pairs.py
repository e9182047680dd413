"""Pairs of a medium and its caption, as conversations.

For the task "captioning" (stage 1) the medium is read and the caption is the reply; for "generation" (stage 2) the
caption is read, and the reply repeats it and asks for the medium.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from nextgpt_jax.data.fields import media_of, text_of
from nextgpt_jax.data.media_files import EmbeddedMedium, Source, media_exists
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.prompts import Input, Output, Turn

Conversation = tuple[Turn[Source], ...]


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


def content_of(medium: str | EmbeddedMedium, place: Place) -> Source:
    return medium if isinstance(medium, EmbeddedMedium) else place.folder / medium


def _pair(modality: str, medium: str | EmbeddedMedium, caption: str, place: Place) -> Conversation:
    """A medium and its caption: for stage 1 the medium is read, for stage 2 it is made."""
    if place.task == "captioning":
        return (Turn((Input(modality, content_of(medium, place)), " generate a caption"), (caption,)),)
    if place.task != "generation":
        raise UserError("is a caption, for stages 1 and 2; stage3 trains on conversations")
    if modality not in output_modalities():
        raise UserError(f"{modality} cannot be generated (only {', '.join(output_modalities())})")
    return (Turn((caption,), (caption, Output(modality, caption))),)


def caption(fields: dict[str, Any], place: Place) -> Conversation:
    found = [name for name in fields if name.endswith("_name")]
    if len(found) != 1:
        raise UserError(f"needs one of {', '.join(f'{name}_name' for name in MODALITIES)}, has {len(found)}")
    name = found[0]
    modality = name.removesuffix("_name")
    medium = fields[name] if isinstance(fields[name], EmbeddedMedium) else text_of(fields, name)
    return _pair(modality, medium, text_of(fields, "caption"), place)


def hub_caption(fields: dict[str, Any], place: Place) -> Conversation:
    """As Parquet files of the hub have it: the medium's column is called by its modality."""
    found = [name for name in MODALITIES if name in fields]
    if len(found) != 1:
        raise UserError(f"needs one of {', '.join(MODALITIES)}, has {len(found)}")
    media = media_of(fields, found[0])
    if len(media) != 1:
        raise UserError(f"has {len(media)} {found[0]}s for one caption")
    return _pair(found[0], media[0], text_of(fields, "caption" if "caption" in fields else "text"), place)


def cc3m(fields: dict[str, Any], place: Place) -> Conversation:
    """A row of CC3M's TSV; its image is called as img2dataset calls it, by the number of the row."""
    return _pair("image", f"{place.index:09d}.jpg", text_of(fields, "caption"), place)


def audiocaps(fields: dict[str, Any], place: Place) -> Conversation:
    names = [f"{fields[name]}.wav" for name in ("audiocap_id", "youtube_id") if name in fields]
    return _pair("audio", _first_file(names, "audio", place), text_of(fields, "caption"), place)


def webvid(fields: dict[str, Any], place: Place) -> Conversation:
    name = f"{fields['videoid']}.mp4"
    names = [name, *([f"{fields['page_dir']}/{name}"] if "page_dir" in fields else [])]
    return _pair("video", _first_file(names, "video", place), text_of(fields, "name"), place)


def _first_file(names: Sequence[str], modality: str, place: Place) -> str:
    """The first of the usual names of a medium that is there; of none, the first."""
    if place.task != "captioning":
        return names[0]
    return next((name for name in names if media_exists(f"{place.folder}/{name}", modality)), names[0])
