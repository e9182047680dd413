"""Prepared data: conversations with token ids and the embeddings of their media and captions, in ArrayRecord shards.

A record is the length of its header (uint32), the header (JSON), the token ids (int32), and the embeddings, those of
the inputs before those of the outputs, each in the order of the conversation; all little-endian. The header has

turns      [[human segments, assistant segments or null], ...]; a segment is a text, {"input": modality, "sha256": of
           the medium's content} or {"output": modality, "caption": text}
tokens     the number of ids
targets    [[begin, end], ...]: the ids that are training targets
positions  of the inputs, and then of the outputs, in the ids

Shapes and dtype of the embeddings, and what they were computed with, are in the folder's manifest.json.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import ml_dtypes
import numpy as np

from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.json_files import parse_json, read_json
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.prompts import Input, Output, Turn
from nextgpt_jax.templates import TokenizedConversation

MANIFEST = "manifest.json"
FORMAT = 1  # of records and manifest
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float32", "bfloat16", "float16")}
WRITER_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"  # records can be read one by one
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """The content of an input of prepared data.

    Attributes:
      sha256: of the medium.
      embeddings: [k, E].
    """

    sha256: str
    embeddings: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.sha256


class PreparedConversation(tuple):
    """A Conversation with its token ids.

    Attributes:
      tokenized: the ids, whole.
      layout: `Manifest.layout`.
    """

    tokenized: TokenizedConversation
    layout: str


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What the embeddings of a modality are, and what computed them.

    Attributes:
      shape: [k, E] of a medium, [L, d] of a caption.
      weights: the fingerprint of the encoder (weights/frozen.py).
      settings: what else they depend on: the shape of the encoder's inputs, or the fingerprint of the tokenizer.
    """

    shape: tuple[int, int]
    weights: str
    settings: Any


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of prepared data holds.

    Attributes:
      task: one of formats.TASKS, that the samples are for.
      dtype: of the embeddings.
      media, captions: by modality, those that the samples have.
      layout: fingerprint of the token ids: with another one, conversations are tokenized when they are read.
      shards: name, samples and bytes of each.
      inputs, outputs: the largest numbers of media in any sample, by modality.
    """

    task: str
    dtype: str
    media: Mapping[str, Embedded]
    captions: Mapping[str, Embedded]
    layout: str
    shards: Sequence[tuple[str, int, int]]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Self:
        """Reads FOLDER/manifest.json.

        Raises:
          UserError: it cannot be read, is malformed, or of a later release.
        """
        path = pathlib.Path(folder) / MANIFEST
        content = read_json(path)
        try:
            if content["format"] != FORMAT:
                raise UserError(
                    f"{path} has format {content['format']}, and this release reads {FORMAT}: prepare the data again"
                )
            kinds = ({n: _embedded(n, row) for n, row in content[kind].items()} for kind in ("media", "captions"))
            shards = [(str(row["name"]), int(row["samples"]), int(row["bytes"])) for row in content["shards"]]
            slots = ({name: int(n) for name, n in content[kind].items()} for kind in ("inputs", "outputs"))
            found = cls(str(content["task"]), str(content["dtype"]), *kinds, str(content["layout"]), shards, *slots)
            if found.dtype not in DTYPES or not {*found.inputs, *found.outputs} <= MODALITIES.keys():
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path} is no manifest of prepared data: prepare the data again") from None
        return found


def _embedded(name: str, row: Mapping[str, Any]) -> Embedded:
    count, width = row["shape"]
    if name not in MODALITIES or count < 1 or width < 1:
        raise ValueError(name)
    return Embedded((int(count), int(width)), str(row["weights"]), row["settings"])


def is_prepared(path: str | os.PathLike) -> bool:
    """Whether a path is a folder of prepared data, or its manifest."""
    return os.path.basename(path) == MANIFEST or os.path.isfile(os.path.join(path, MANIFEST))


class PreparedRecords(Sequence[PreparedConversation]):
    """The conversations of a folder of prepared data, by number.

    Attributes:
      path: the folder.
      manifest: what it holds.
      identity: changes when the data does: a name in caches.
    """

    unit = "sample"

    def __init__(self, path: str):
        """
        Raises:
          UserError: the manifest cannot be read, or a shard is missing or of another size.
        """
        place = pathlib.Path(path)
        self.path = str(place.parent if place.name == MANIFEST else place)
        self.manifest = Manifest.read(self.path)
        self.identity = hashlib.sha256((pathlib.Path(self.path) / MANIFEST).read_bytes()).hexdigest()
        self._starts = np.cumsum([0, *(samples for _, samples, _ in self.manifest.shards)])
        for name, _, size in self.manifest.shards:
            file = os.path.join(self.path, name)
            found = os.path.getsize(file) if os.path.isfile(file) else None
            if found != size:
                state = "missing" if found is None else f"damaged: it has {found} bytes, not {size}"
                raise UserError(f"{file} is {state}: run nextgpt prepare again, which writes this shard anew")
        self._lock, self._process, self._readers = threading.Lock(), 0, {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, index: int) -> str:
        """How messages call a sample."""
        return f"sample {index}"

    def __getitem__(self, index: Any) -> PreparedConversation:
        """
        Raises:
          UserError: the shard is damaged there.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = int(index - self._starts[number])
        try:
            (content,) = self._reader(number).read(row, row + 1)  # ten times as fast as read([row])
        except Exception as error:  # the library has no types of its own
            raise UserError(f"{self.manifest.shards[number][0]} cannot be read: {first_line(error)}") from None
        return decode(content, self.manifest)

    def _reader(self, number: int) -> Any:
        if self._process != os.getpid():
            self._readers, self._process = {}, os.getpid()
        if (reader := self._readers.get(number)) is None:
            from array_record.python.array_record_module import ArrayRecordReader

            with self._lock:
                reader = self._readers.setdefault(
                    number, ArrayRecordReader(os.path.join(self.path, self.manifest.shards[number][0]), _READER_OPTIONS)
                )
        return reader

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedRecords, (self.path,)


def encode(
    conversation: Conversation,
    tokenized: TokenizedConversation,
    sha256: Sequence[str],
    embeddings: Iterable[np.ndarray],
) -> bytes:
    """A record.

    Args:
      sha256: of each input, in order.
      embeddings: of each input and then of each output, in order.
    """
    names = iter(sha256)

    def segment(value: Any) -> Any:
        if isinstance(value, Input):
            return {"input": value.modality, "sha256": next(names)}
        if isinstance(value, Output):
            return {"output": value.modality, "caption": value.caption}
        return value

    def side(segments: Sequence[Any] | None) -> Any:
        return None if segments is None else [segment(value) for value in segments]

    edges = np.flatnonzero(np.diff([0, *tokenized.loss, 0])).reshape(-1, 2)
    header = {
        "turns": [[side(turn.human), side(turn.assistant)] for turn in conversation],
        "tokens": len(tokenized.ids),
        "targets": edges.tolist(),
        "positions": [position for position, _ in (*tokenized.inputs, *tokenized.outputs)],
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    arrays = [np.asarray(tokenized.ids, "<i4"), *embeddings]
    return b"".join([len(text).to_bytes(4, "little"), text, *(np.ascontiguousarray(a).tobytes() for a in arrays)])


def decode(content: bytes, manifest: Manifest) -> PreparedConversation:
    """The inverse of `encode`. Embeddings are views of `content`.

    Raises:
      UserError: the record is malformed.
    """
    try:
        begin = 4 + int.from_bytes(content[:4], "little")
        header = parse_json(content[4:begin].decode())
        ids = np.frombuffer(content, "<i4", header["tokens"], begin)
        at, dtype = begin + ids.nbytes, DTYPES[manifest.dtype]

        def take(shape: tuple[int, int]) -> np.ndarray:
            nonlocal at
            found = np.frombuffer(content, dtype, shape[0] * shape[1], at).reshape(shape)
            at += found.nbytes
            return found

        media = [value for turn in header["turns"] for side in turn for value in side or () if isinstance(value, dict)]
        inputs: list[Any] = [
            Input(m["input"], Precomputed(m["sha256"], take(manifest.media[m["input"]].shape)))
            for m in media
            if "input" in m
        ]
        outputs: list[Any] = [
            Output(m["output"], m["caption"], take(manifest.captions[m["output"]].shape))
            for m in media
            if "input" not in m
        ]
        if at != len(content):
            raise ValueError
        remaining = iter(inputs), iter(outputs)

        def side(segments: Any) -> Any:
            if segments is None:
                return None
            return tuple(s if isinstance(s, str) else next(remaining["input" not in s]) for s in segments)

        found = PreparedConversation([Turn(side(human), side(assistant)) for human, assistant in header["turns"]])
        placed = list(zip(header["positions"], inputs + outputs, strict=True))
        loss = np.zeros(len(ids), bool)
        for first, last in header["targets"]:
            loss[first:last] = True
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration):
        raise UserError("is no record of prepared data") from None
    found.tokenized = TokenizedConversation(ids, loss, placed[: len(inputs)], placed[len(inputs) :])  # type: ignore
    found.layout = manifest.layout
    return found
