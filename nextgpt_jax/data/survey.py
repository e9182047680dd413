"""One pass over all records: how many media they have, and which of them cannot be used.

It is made once for a file as it is (cache.py), by many processes. Whether media files are there is seen every time.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nextgpt_jax.data.cache import Arrays
from nextgpt_jax.data.media_files import media_exists
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.passes import of_files
from nextgpt_jax.data.presence import name_hash, not_listed
from nextgpt_jax.data.readers import Problem, Samples, media_kinds
from nextgpt_jax.errors import UserError
from nextgpt_jax.prompts import Input, Output

MAX_MEDIA = 255  # inputs or outputs of one modality in a sample: counts are bytes
_CHUNK = 1 << 14  # records that a process looks at at a time
_SHOWN = 5  # problems in a message
Kinds = tuple[tuple[type, str], ...]


class Survey(NamedTuple):
    """What one pass over all records found.

    Attributes:
      media: uint8 [samples, kinds], how many media of each kind a sample has; 0 for those that cannot be used.
      problems: records that cannot be used.
      kinds: (Input or Output, modality) of the columns of `media`.
      given_up: sources with so many problems that the search for more ended.
    """

    media: np.ndarray
    problems: list[Problem]
    kinds: Kinds
    given_up: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, int]:
        """The largest numbers of inputs in any sample, by modality; without those that none has."""
        return self._largest(Input)

    @property
    def outputs(self) -> dict[str, int]:
        """The largest numbers of outputs in any sample, by modality; without those that none has."""
        return self._largest(Output)

    def _largest(self, kind: type) -> dict[str, int]:
        counts = self.media.max(0, initial=0).tolist()
        return {name: n for (given, name), n in zip(self.kinds, counts, strict=True) if given is kind and n}

    def usable(self, samples: Samples) -> Samples:
        """Those of the samples, of which this is the survey, that have no problem; with their media."""
        keep = np.ones(len(samples), bool)
        keep[[problem.index for problem in self.problems]] = False
        return samples.chosen(keep, self.media)


def survey(samples: Sequence[Conversation], limit: int, max_share: float = 1.0) -> Survey:
    """Finds what media samples have, and records that are malformed, whose files are missing, or that have more than
    `limit` (at most MAX_MEDIA) inputs or outputs of a modality. Nothing is decoded.

    Args:
      max_share: missing files of a source are looked for until more than this share of its records has problems.
    """
    kinds = media_kinds()
    if not isinstance(samples, Samples):
        found = _look(samples.__getitem__, range(len(samples)), limit, kinds)
        reasons = dict(found.notes["problems"]) | dict(_missing(samples.__getitem__, found))
        media = found["media"].copy()
        media[[*reasons]] = 0
        return Survey(media, [Problem(i, "", f"sample {i}", reasons[i]) for i in sorted(reasons)], kinds)
    media, wrong, by_file, given_up = [], [], [], []
    for file, found in enumerate(_surveyed(samples, limit, kinds)):
        count = len(found["media"])
        reasons = dict(found.notes["problems"])
        for number, reason in _missing(functools.partial(samples.conversation, file), found):
            reasons[number] = reason
            if len(reasons) > max_share * count:
                given_up.append(samples.files[file].records.path)
                break
        mask = np.zeros(count, bool)
        mask[[*reasons]] = True
        media.append(found["media"] * ~mask[:, None])
        wrong.append(mask)
        by_file.append(reasons)
    problems = []
    for index in np.flatnonzero(samples.of_records(wrong)).tolist():
        file, number = samples.find(index)
        problems.append(Problem(index, *samples.where(index), by_file[file][number]))
    return Survey(samples.of_records(media), problems, kinds, tuple(given_up))


def _surveyed(samples: Samples, limit: int, kinds: Kinds) -> list[Arrays]:
    """What was found in each file, kept from an earlier start or found now."""
    quick = [file._replace(folder=_Folder(file.folder)) for file in samples.files]
    shared = (Samples(quick, samples.task, samples.format), limit, kinds)
    settings = limit, tuple((kind.__name__, name) for kind, name in kinds)
    return of_files("survey", samples, settings, _look_in_file, shared, _joined, _CHUNK)


def _look_in_file(shared: tuple[Samples, int, Kinds], task: tuple[int, range]) -> Arrays:
    (samples, limit, kinds), (file, numbers) = shared, task
    if kinds != media_kinds():
        raise ValueError("other modalities than in the process that this works for")
    return _look(functools.partial(samples.conversation, file), numbers, limit, kinds)


def _look(read: Callable[[int], Conversation], numbers: range, limit: int, kinds: Kinds) -> Arrays:
    """What the records of these numbers have.

    Returns:
      media: see Survey.
      rows, folders, hashes: int32, int32 and uint64 [files]: of each media file the number of its record, the number
        of its folder and modality in the notes, and the hash of its name. Only of records without problems.
      notes: folders: (folder, modality); problems: (number, reason).
    """
    columns = {kind: column for column, kind in enumerate(kinds)}
    media = np.zeros((len(numbers), len(kinds)), np.uint8)
    folders: dict[tuple[str, str], int] = {}
    problems, rows, places, hashes = [], [], [], []
    for row, number in enumerate(numbers):
        try:
            counts, files = _contents(read(number), limit)
        except UserError as error:
            problems.append((number, str(error)))
            continue
        for kind, count in counts.items():
            media[row, columns[kind]] = count
        for path, modality in files:
            folder, root, name = path.rpartition("/")
            folder = folder or root
            rows.append(number)
            places.append(folders.setdefault((folder, modality), len(folders)))
            hashes.append(name_hash(name))
    arrays = {
        "media": media,
        "rows": np.array(rows, np.int32),
        "folders": np.array(places, np.int32),
        "hashes": np.array(hashes, np.uint64),
    }
    here = os.getcwd()
    return Arrays(arrays, {"folders": [(os.path.join(here, folder), name) for folder, name in folders],
                           "problems": problems})  # fmt: skip


class _Folder(str):
    """A folder that makes texts of names in it. A pathlib.Path takes as long as all else that is done to a record."""

    def __truediv__(self, name: str) -> "_File":
        return _File(os.path.join(self, name))

    def __new__(cls, path: str | pathlib.Path) -> "_Folder":
        return super().__new__(cls, path)


class _File(str):
    """A path in a _Folder."""


def _joined(parts: Sequence[Arrays]) -> Arrays:
    """What was found in consecutive parts of a file."""
    folders: dict[tuple[str, str], int] = {}
    renumbered, problems = [], []
    for part in parts:
        numbers = [folders.setdefault((folder, name), len(folders)) for folder, name in part.notes["folders"]]
        renumbered.append(np.array(numbers, np.int32)[part["folders"]])
        problems += part.notes["problems"]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in ("media", "rows", "hashes")}
    return Arrays(arrays | {"folders": np.concatenate(renumbered)}, {"folders": [*folders], "problems": problems})


def _contents(conversation: Conversation, limit: int) -> tuple[dict[tuple[type, str], int], list[tuple[str, str]]]:
    """The numbers of media by kind, and the paths and modalities of those that are files."""
    counts: dict[tuple[type, str], int] = {}
    files = []
    for turn in conversation:
        for side in (turn.human, turn.assistant or ()):
            for segment in side:
                if isinstance(segment, str):
                    continue
                kind = type(segment), segment.modality
                counts[kind] = counts.get(kind, 0) + 1
                if isinstance(segment, Input) and isinstance(segment.content, pathlib.Path | _File):
                    files.append((str(segment.content), segment.modality))
    for (kind, name), count in counts.items():
        if count > limit:
            word = "inputs" if kind is Input else "outputs"
            raise UserError(f"has {count} {name} {word} but data.max_media is {limit}: raise it")
    return counts, files


def _missing(read: Callable[[int], Conversation], found: Arrays) -> Iterator[tuple[int, str]]:
    """The records that lack a file, and which: those whose media are not listed are read again to be sure."""
    folders = [(folder, name) for folder, name in found.notes["folders"]]
    absent = not_listed(folders, found["folders"], found["hashes"])
    for number in np.unique(found["rows"][absent]).tolist():
        try:
            for path, modality in _contents(read(number), MAX_MEDIA)[1]:
                if not media_exists(path, modality):
                    raise UserError(f"no such {modality}: {path}")
        except UserError as error:
            yield number, str(error)


def check_problems(
    problems: Sequence[Problem], counts: Mapping[str, int], max_share: float, given_up: Collection[str] = ()
) -> None:
    """Checks that of no file more than the share `max_share` of its records has problems.

    Args:
      counts: the number of records of each file.
      given_up: files that may have more problems than these.

    Raises:
      UserError: of one it has; the message has the first of them.
    """
    by_file: dict[str, list[Problem]] = collections.defaultdict(list)
    for problem in problems:
        by_file[problem.source].append(problem)
    for source, found in by_file.items():
        if len(found) <= max_share * counts[source]:
            continue
        if len(found) == 1 == len(by_file):
            raise UserError(f"{source}, {found[0].record}: {found[0].reason}")
        shown = "; ".join(f"{problem.record}: {problem.reason}" for problem in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        least = "at least " if source in given_up else ""
        raise UserError(f"{source}: {least}{too_many(len(found), counts[source], max_share)}: {shown}{more}")


def too_many(found: int, count: int, max_share: float) -> str:
    """ "2 of its 50 records cannot be used; data.max_skipped allows 1.00%"."""
    return f"{found} of its {count} records cannot be used; data.max_skipped allows {max_share:.2%}"
