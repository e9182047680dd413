"""Data files to conversations, by number: records are read and parsed when they are asked for (formats.py)."""

import bisect
import glob
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nextgpt_jax.data.archives import ArrayRecords, ArrowRecords, TarRecords, folder_records, parquet_records
from nextgpt_jax.data.fingerprint import identity
from nextgpt_jax.data.formats import Formats
from nextgpt_jax.data.pairs import Conversation, Place
from nextgpt_jax.data.prepared import PreparedRecords, is_prepared
from nextgpt_jax.data.sources import Mixture, Source, mixture_of, parse_sources
from nextgpt_jax.data.text_files import TableRecords, open_json, open_table
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.prompts import Input, Output

_CC3M = ("caption", "url")  # the columns of its TSV, which has no header
_FILES: dict[str, Callable[[str], Any]] = {
    ".csv": lambda path: open_table(path, ","),
    ".tsv": lambda path: open_table(path, "\t", _CC3M),
    ".tar": TarRecords,
    ".parquet": parquet_records,
    ".arrow": lambda path: ArrowRecords(path, [path], identity(path)),
    ".array_record": ArrayRecords,
    ".arrayrecord": ArrayRecords,
}


class DataFile(NamedTuple):
    """The records of one file, and how they are read.

    Attributes:
      records: by number.
      folder: that names of media are relative to.
      unused: columns of a table that no format has.
      source: what named the file.
    """

    records: Any
    folder: pathlib.Path
    unused: tuple[str, ...] = ()
    source: Source = Source("", "")


class Problem(NamedTuple):
    """A record that cannot be used.

    Attributes:
      index: of the sample.
      source: the file.
      record: its place there.
      reason: what is wrong with it.
    """

    index: int
    source: str
    record: str
    reason: str

    @property
    def entry(self) -> dict[str, str]:
        """It, in files of what was left out."""
        return {"source": self.source, "record": self.record, "reason": self.reason}


class Samples(Sequence[Conversation]):
    """The conversations of data files. Media are not opened: inputs hold their paths.

    Attributes:
      files: in the order of their samples.
      task: one of formats.TASKS.
      format: the name of their format; empty: each record's own.
      media: uint8 [samples, media_kinds()], how many each sample has; None: not counted yet.
    """

    def __init__(self, files: Sequence[DataFile], task: str, format: str = ""):
        self.files, self.task, self.format = tuple(files), task, format
        self.media: np.ndarray | None = None
        self._formats = Formats()
        self._kept: np.ndarray | None = None  # numbers of records
        self._starts = [0, *itertools.accumulate(len(file.records) for file in self.files)]

    def __len__(self) -> int:
        return self._starts[-1] if self._kept is None else len(self._kept)

    def __getitem__(self, index: Any) -> Conversation:
        """A conversation.

        Raises:
          UserError: its record is malformed; the message has the file and its place there.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        file, number = self.find(index)
        try:
            return self.conversation(file, number)
        except UserError as error:
            records = self.files[file].records
            raise UserError(f"{records.path}, {records.place(number)}: {error}") from None

    def conversation(self, file: int, number: int) -> Conversation:
        """The conversation of a record, by the numbers of its file and there.

        Raises:
          UserError: it is malformed; the message does not say where it is.
        """
        found = self.files[file]
        if isinstance(found.records, PreparedRecords):
            return found.records[number]
        place = Place(self.task, found.folder, number)
        return self._formats.conversation(found.records[number], place, self.format, found.unused)

    def where(self, index: int) -> tuple[str, str]:
        """The file of a sample, and its place there."""
        file, number = self.find(index)
        records = self.files[file].records
        return records.path, records.place(number)

    def source(self, index: int) -> str:
        """The file of a sample; its place there may have to be read."""
        return self.files[self.find(index)[0]].records.path

    def counts(self) -> dict[str, int]:
        """The number of records of each file."""
        return {file.records.path: len(file.records) for file in self.files}

    def of_records(self, by_file: Sequence[np.ndarray]) -> np.ndarray:
        """What is known of the records of each file, of these samples."""
        found = np.concatenate([*by_file])
        return found if self._kept is None else found[self._kept]

    def mixture(self) -> Mixture:
        """The source of each sample, and how they are mixed.

        Raises:
          UserError: a source has a weight but no sample; or weights have too many digits.
        """
        files = self.files
        return mixture_of([file.source for file in files], [len(file.records) for file in files], self._kept)

    def chosen(self, keep: np.ndarray, media: np.ndarray) -> "Samples":
        """Those of the samples for which `keep` (bool) is true.

        Args:
          media: of each of these samples.
        """
        some = Samples(self.files, self.task, self.format)
        some.media = media[keep]
        some._kept = np.flatnonzero(keep) if self._kept is None else self._kept[keep]
        return some

    def find(self, index: int) -> tuple[int, int]:
        """The numbers of a sample's file, and of its record there."""
        position = int(index) if self._kept is None else int(self._kept[index])
        file = bisect.bisect_right(self._starts, position) - 1
        return file, position - self._starts[file]


def media_kinds() -> tuple[tuple[type, str], ...]:
    """(Input or Output, modality) of the columns of counted media."""
    return (*((Input, name) for name in MODALITIES), *((Output, name) for name in output_modalities()))


def read_samples(task: str, paths: str, media_root: str = "", format: str = "") -> Samples:
    """Opens data files.

    Args:
      task: "captioning" or "generation" for pairs of a medium and its caption, "conversation" for the others; formats
        that are conversations serve all of them.
      paths: files, folders, patterns with * or {00..99}, or several separated by commas, with or without weights
        (sources.py).
      media_root: the folder that media paths are relative to; empty: the folder of their file.
      format: a key of Formats; empty: each record's own.

    Raises:
      UserError: none is given, or a file is missing or unreadable.
    """
    if not paths.strip():
        raise UserError(f"no training file: set data.{'instructions' if task == 'conversation' else 'captions'}")
    Formats().check(format)
    files = [
        file._replace(source=source)
        for source in parse_sources(paths)
        for path in _matches(source.files)
        for file in _open(path, media_root)
    ]
    for file in files:
        if isinstance(file.records, PreparedRecords) and file.records.manifest.task != task:
            raise UserError(
                f"{file.records.path} was prepared for {file.records.manifest.task}, not for {task}, which this stage "
                "trains: prepare it with --config.train.stage of this stage"
            )
    return Samples(files, task, format)


def expand(paths: str) -> list[str]:
    """The files and folders that a comma-separated list with patterns names; weights are left out.

    Raises:
      UserError: a pattern matches nothing, or a weight is no number.
    """
    return [name for source in parse_sources(paths) for name in _matches(source.files)]


def _matches(files: str) -> list[str]:
    found = []
    for name in _braces(files):
        if any(mark in name for mark in "*?[") and not pathlib.Path(name).exists():
            if not (matches := sorted(glob.glob(name))):
                raise UserError(f"no file matches {name}")
            found += matches
        else:
            found.append(name)
    return found


def _braces(path: str) -> list[str]:
    """ "a-{08..10}.tar" to "a-08.tar", "a-09.tar", "a-10.tar"."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if match is None:
        return [path]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    return [
        name
        for number in numbers
        for name in _braces(f"{path[: match.start()]}{number:0{len(first)}d}{path[match.end() :]}")
    ]


def _open(path: str, media_root: str) -> Iterator[DataFile]:
    place = pathlib.Path(path)
    if is_prepared(path):
        files = [PreparedRecords(path)]
    elif place.is_dir():
        files = list(folder_records(path))
    elif opener := _FILES.get(place.suffix.lower()):
        if not place.exists():
            raise UserError(f"no such file: {path}")
        files = [opener(path)]
    else:
        known = identity(path)
        content = open_json(path)
        files = [content if hasattr(content, "place") else _JsonObject(path, content, known)]
    for records in files:
        if not len(records):
            raise UserError(f"{path} should be a list of records, or JSON lines: .jsonl, one record per line")
        folder = pathlib.Path(media_root or (place if place.is_dir() else place.parent))
        yield DataFile(records, folder, _unused_columns(records))


def _unused_columns(records: Any) -> tuple[str, ...]:
    """The columns of a table that no format knows and that do not look like media: tables have columns of all kinds."""
    if not isinstance(records, TableRecords | ArrowRecords):
        return ()
    known = {field for row in Formats().values() for field in (*row.known, *row.unused)}
    like_media = (*MODALITIES, "caption", "conversation")
    return tuple(
        name for name in records.columns if name not in known and not any(word in name.lower() for word in like_media)
    )


class _JsonObject(Sequence[dict[str, str]]):
    """The annotations of a COCO captions file: one object with images and annotations."""

    def __init__(self, path: str, content: Any, identity: str):
        self.path, self.identity = path, identity
        refusal = UserError(f"{path} should be a list of records, or JSON lines: .jsonl, one record per line")
        if not isinstance(content, Mapping) or not {"images", "annotations"} <= content.keys():
            raise refusal
        try:
            names = {image["id"]: image["file_name"] for image in content["images"]}
            self._rows = [(names[row["image_id"]], row["caption"]) for row in content["annotations"]]
        except (TypeError, KeyError) as error:
            raise UserError(f"{path} is no captions file of COCO: {error!r} is missing") from None

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> str:
        """How messages call a record."""
        return f"annotation {index}"

    def __getitem__(self, index: Any) -> dict[str, str]:
        name, caption = self._rows[index]
        return {"image_name": name, "caption": caption}


def problem_of(samples: Sequence[Conversation], index: int, error: UserError) -> Problem:
    """The problem of a sample that raised `error`."""
    source, record = samples.where(index) if isinstance(samples, Samples) else ("", f"sample {index}")
    return Problem(index, source, record, str(error).removeprefix(f"{source}, {record}: "))
