"""A web page that shows training data: one file without scripts, with images, players and turns."""

import base64
import collections
import html
import mimetypes
import os
import pathlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

from nextgpt_jax.data.media_files import EmbeddedMedium, Source, resolve_media_path
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.readers import Samples, read_samples
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import atomic_write
from nextgpt_jax.prompts import Input, Output, Segment

_SHOWN = {  # element -> suffixes that browsers play
    "img": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif"),
    "video": (".mp4", ".webm", ".m4v"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"),
}
_CONTROL = re.compile(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 46rem; padding: 1rem; color: #1c1e21;
  background: #f4f5f7 }
h1 { font-size: 1.3rem } h2 { font-size: .8rem; font-weight: 500; color: #667; margin: 0 0 .6rem;
  overflow-wrap: anywhere }
article { background: #fff; border-radius: .6rem; padding: 1rem; margin: 1rem 0; box-shadow: 0 1px 2px #0002 }
.problem { border-left: 4px solid #c33 }
.side { border-radius: .6rem; padding: .5rem .8rem; margin: .5rem 0; width: fit-content; max-width: 85% }
.human { background: #e3edff; margin-left: auto } .model { background: #f0f1f3 }
p { margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere }
figure { margin: .4rem 0 } figcaption { font-size: .8rem; color: #556; overflow-wrap: anywhere }
img, video { max-width: 100%; max-height: 20rem; min-height: 6rem; border-radius: .4rem; display: block;
  object-fit: contain } video { min-width: 16rem }
.made { border: 1px dashed #89a; border-radius: .4rem; padding: .3rem .6rem } .made b { color: #356 }
"""
_POLICY = "default-src 'none'; img-src 'self' data: file:; media-src 'self' data: file:; style-src 'unsafe-inline'"


class Page(NamedTuple):
    """What was written: the number of records shown, of all records, and of those shown that cannot be used."""

    shown: int
    total: int
    problems: int


def write_page(output: pathlib.Path, paths: str, media_root: str, limit: int, seed: int, embed: bool) -> Page:
    """Writes a page with records of data files.

    Args:
      output: the page.
      paths, media_root: as `read_samples` takes them.
      limit: number of records, drawn at random but shown in order; 0: all.
      seed: of the drawing.
      embed: media are put into the page; else it links to their files, relative to its folder. Media inside archives
        and tables are always put into it.

    Raises:
      UserError: a file cannot be read, or the page cannot be written; an older page is then as it was.
    """
    tasks = [read_samples(task, paths, media_root) for task in ("conversation", "captioning")]
    total = len(tasks[0])
    indices: Sequence[int] = range(total)
    if 0 < limit < total:
        indices = sorted(random.Random(seed).sample(indices, limit))
    problems, counts = 0, collections.Counter[str]()
    shown = [_read(tasks, index) for index in indices]
    for conversation in shown:
        problems += isinstance(conversation, str)
        counts.update(_counts(conversation))
    with atomic_write(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(_head(paths, len(indices), total, problems, counts))
        for index, conversation in zip(indices, shown, strict=True):
            file.write(_record(", ".join(tasks[0].where(index)), conversation, output.parent, embed))
        file.write("</body></html>\n")
    return Page(len(indices), total, problems)


def _read(tasks: Sequence[Samples], index: int) -> Conversation | str:
    """A conversation, of a caption the pair; or what is wrong with it."""
    reasons = []
    for samples in tasks:
        try:
            return samples[index]
        except UserError as error:
            reasons.append(str(error).removeprefix(", ".join(samples.where(index)) + ": "))
    return reasons[0] if "stage3 trains on" not in reasons[0] else reasons[1]


def _counts(conversation: Conversation | str) -> Iterator[str]:
    if isinstance(conversation, str):
        return
    for turn in conversation:
        yield "turns"
        for segment in (*turn.human, *(turn.assistant or ())):
            if isinstance(segment, Input):
                yield f"{segment.modality} in"
            elif isinstance(segment, Output):
                yield f"{segment.modality} out"


def _text(text: str) -> str:
    """A text that is nothing but text in HTML, also between quotes."""
    return html.escape(_CONTROL.sub("\ufffd", text), quote=True)


def _head(paths: str, shown: int, total: int, problems: int, counts: collections.Counter[str]) -> str:
    numbers = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    wrong = f"; {problems} cannot be used" if problems else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{_text(paths)}</title>'
        f"<style>{_STYLE}</style></head><body>\n"
        f"<h1>{_text(paths)}</h1><p>{shown} of {total} records{_text(wrong)}: {_text(numbers)}</p>\n"
    )


def _record(place: str, conversation: Conversation | str, folder: pathlib.Path, embed: bool) -> str:
    if isinstance(conversation, str):
        return f'<article class="problem"><h2>{_text(place)}</h2><p>{_text(conversation)}</p></article>\n'
    sides = []
    for turn in conversation:
        for name, segments in (("human", turn.human), ("model", turn.assistant or ())):
            parts = "".join(_segment(segment, folder, embed) for segment in segments)
            sides.append(f'<div class="side {name}">{parts}</div>')
    return f"<article><h2>{_text(place)}</h2>{''.join(sides)}</article>\n"


def _segment(segment: Segment, folder: pathlib.Path, embed: bool) -> str:
    if isinstance(segment, str):
        return f"<p>{_text(segment.strip())}</p>" if segment.strip() else ""
    if isinstance(segment, Output):
        return f'<p class="made"><b>{_text(segment.modality)}</b> {_text(segment.caption)}</p>'
    return _medium(segment.modality, segment.content, folder, embed)


def _medium(modality: str, medium: Source, folder: pathlib.Path, embed: bool) -> str:
    """A figure with a medium; where it cannot be shown, with its name alone."""
    name = str(medium)
    suffix = pathlib.PurePosixPath(name).suffix.lower()
    element = next((element for element, suffixes in _SHOWN.items() if suffix in suffixes), "")
    if isinstance(medium, pathlib.Path):
        medium = resolve_media_path(medium, modality)
        name = os.path.relpath(medium, folder)
    label = f"<figcaption>{_text(modality)}: {_text(name)}"
    if isinstance(medium, pathlib.Path) and not medium.is_file():
        return f"<figure>{label} (missing)</figcaption></figure>"
    try:
        address = _address(medium, name, suffix, embed)
    except (OSError, UserError) as error:
        return f"<figure>{label} ({_text(first_line(error))})</figcaption></figure>"
    shown = {
        "": "",
        "img": f'<img loading="lazy" alt="" src="{address}">',
        "video": f'<video controls preload="metadata" src="{address}"></video>',
        "audio": f'<audio controls preload="metadata" src="{address}"></audio>',
    }[element]
    return f"<figure>{shown}{label}</figcaption></figure>"


def _address(medium: Source, name: str, suffix: str, embed: bool) -> str:
    if isinstance(medium, pathlib.Path) and not embed:
        return quote(name, safe="/", errors="surrogateescape")
    content = medium.read() if isinstance(medium, EmbeddedMedium) else medium.read_bytes()
    kind = mimetypes.types_map.get(suffix, "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
