"""Captions and captioned media, from files in any format that training reads (docs/data.md)."""

import collections
import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nextgpt_jax.data.media_files import EmbeddedMedium, resolve_media_path
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.readers import Samples, read_samples
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.prompts import Input, Output, split_placeholders

_SHOWN = 3  # problems in a message
_LONGEST = 1000  # characters of a caption


class Caption(NamedTuple):
    """What a medium shows.

    Attributes:
      modality: of the medium.
      text: the caption.
      path: of the medium; None: not looked for.
      source: the name of the file and the record it is from.
    """

    modality: str
    text: str
    path: pathlib.Path | None
    source: str


class Captions(NamedTuple):
    """What was found in files.

    Attributes:
      captions: those that can be used, each once.
      skipped: number of the others, by reason.
      examples: the first of them, with their places.
    """

    captions: list[Caption]
    skipped: collections.Counter[str]
    examples: list[str]


def read_captions(paths: str, modalities: Sequence[str] = (), number: int = 0, seed: int = 0) -> Captions:
    """The captions of media that a model can be asked for.

    Args:
      paths: as data.captions has them: files, folders, patterns.
      modalities: those that are wanted; empty: all that can be generated.
      number: of captions, drawn at random; 0: all.
      seed: of the drawing.

    Raises:
      UserError: a file cannot be read, or no caption can be used.
    """
    known = output_modalities()
    for name in modalities:
        if name not in known:
            raise UserError(f"--modalities: {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
    samples = read_samples("generation", paths)
    found = _collect(samples, _asked_for, modalities or known, number, seed)
    if not found.captions:
        raise UserError(f"{paths}: no caption of {', '.join(modalities or known)} can be used{describe_skipped(found)}")
    return found


def read_library(paths: str, media_root: str = "") -> Captions:
    """The media with captions that conversations can be about.

    Args:
      paths, media_root: as `read_samples` takes them.

    Raises:
      UserError: a file cannot be read, or no medium can be used.
    """
    samples = read_samples("captioning", paths, media_root)
    found = _collect(samples, _described, tuple(MODALITIES), 0, 0)
    if not found.captions:
        raise UserError(f"{paths}: no medium with a caption can be used{describe_skipped(found)}")
    return found


def describe_skipped(found: Captions) -> str:
    """ ": 3 skipped (...)", with the first of them; empty: none."""
    if not found.skipped:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.skipped.most_common())
    examples = f"; such as {'; '.join(found.examples)}" if found.examples else ""
    return f": {found.skipped.total()} skipped ({reasons}{examples})"


def _collect(samples: Samples, captions_of, modalities: Sequence[str], number: int, seed: int) -> Captions:
    order: Sequence[int] = range(len(samples))
    if 0 < number < len(samples):
        order = random.Random(seed).sample(order, len(samples))
    found: list[Caption] = []
    seen: set[tuple[str, str, object]] = set()
    skipped: collections.Counter[str] = collections.Counter()
    examples: list[str] = []

    def skip(reason: str, source: str, detail: str = "") -> None:
        skipped[reason] += 1
        if len(examples) < _SHOWN:
            examples.append(f"{source}: {detail or reason}")

    for index in order:
        if number and len(found) >= number:
            break
        file, place = samples.where(index)
        source = f"{file}, {place}"
        try:
            given = list(captions_of(samples[index]))
        except UserError as error:
            skip("unusable", source, str(error).removeprefix(f"{source}: "))
            continue
        for modality, text, path in given:
            if modality not in modalities:
                continue
            text = " ".join(text.split())
            if reason := _problem(text) or ("missing" if path and not path.is_file() else ""):
                skip(reason, source, f"no such {modality}: {path}" if reason == "missing" else "")
            elif (key := (modality, text, path)) in seen:
                skipped["repeated"] += 1
            else:
                seen.add(key)
                found.append(Caption(modality, text, path, f"{pathlib.Path(file).name}, {place}"))
    return Captions(found[:number] if number else found, skipped, examples)


def _problem(text: str) -> str:
    if not any(letter.isalnum() for letter in text):
        return "empty"
    if "###" in text or any(not isinstance(piece, str) for piece in split_placeholders(text)):
        return "with a mark in them"
    return "too long" if len(text) > _LONGEST else ""


def _asked_for(conversation: Conversation) -> Iterator[tuple[str, str, None]]:
    for turn in conversation:
        for segment in turn.assistant or ():
            if isinstance(segment, Output):
                yield segment.modality, segment.caption, None


def _described(conversation: Conversation) -> Iterator[tuple[str, str, pathlib.Path]]:
    """The medium of a first message that has one, and the answer: the caption."""
    turn = conversation[0]
    media = [segment for segment in turn.human if isinstance(segment, Input)]
    texts = [segment for segment in turn.assistant or () if isinstance(segment, str)]
    if len(media) != 1 or len(texts) != 1:
        raise UserError("is no medium with one caption")
    if isinstance(media[0].content, EmbeddedMedium):
        raise UserError("its medium is inside an archive or table, where conversations cannot refer to it: unpack it")
    yield media[0].modality, texts[0], resolve_media_path(media[0].content, media[0].modality)
