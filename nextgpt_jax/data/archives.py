"""Records of archives by number: tars of WebDataset, ArrayRecord files, and the Parquet and Arrow files of datasets.

Media inside them are read when they are needed (`EmbeddedMedium`).
"""

import functools
import hashlib
import os
import pathlib
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nextgpt_jax.data.cache import Arrays, Request, alone, cache_folder, kept
from nextgpt_jax.data.fingerprint import identity
from nextgpt_jax.data.media_files import SUFFIXES, EmbeddedMedium, modality_of
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import atomic_write
from nextgpt_jax.json_files import parse_json

_TEXTS = ("txt", "text", "caption")
_EXTENSIONS = ("json", *_TEXTS, *(suffix for suffixes in SUFFIXES.values() for suffix in suffixes))
_BATCH = 64  # rows of an Arrow file that are read together


class TarRecords(Sequence[dict[str, Any]]):
    """The samples of a tar: members whose names are the same up to the first dot, one after another.

    A sample's text (.txt) is its caption, and its .json has further fields; without a text, the field "caption" is it.
    """

    unit = "sample"

    def __init__(self, path: str):
        """
        Raises:
          UserError: it is no tar, is compressed (members cannot be reached by position), or holds no sample.
        """
        self.path, self.identity = path, identity(path)
        (self._index,) = kept("index", [Request(path, self.identity)], lambda _: [_tar_index(path)])

    def __len__(self) -> int:
        return len(self._index["starts"]) - 1

    def place(self, index: int) -> str:
        """How messages call a sample: by its key."""
        return f"sample {self._name(int(self._index['starts'][index])).split('/')[-1].partition('.')[0]}"

    def _name(self, member: int) -> str:
        with open(self.path, "rb") as file:
            file.seek(int(self._index["headers"][member]))
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return next(iter(tar)).name

    def _label(self, member: int) -> str:
        return self._name(member).split("/")[-1]

    def _bytes(self, member: int) -> bytes:
        begin, size = int(self._index["begins"][member]), int(self._index["sizes"][member])
        with open(self.path, "rb") as file:
            file.seek(begin)
            content = file.read(size)
        if len(content) != size:
            raise UserError(f"{self.path} has become shorter")
        return content

    def __getitem__(self, index: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        texts: dict[str, Any] = {}
        for member in range(int(self._index["starts"][index]), int(self._index["starts"][index + 1])):
            code = int(self._index["kinds"][member])
            if code < 0:
                name = self._name(member)
                raise UserError(f"the member {name} is of a kind that is not read (known: {', '.join(_EXTENSIONS)})")
            extension = _EXTENSIONS[code]
            if extension in _TEXTS or extension == "json":
                try:
                    texts[extension] = self._bytes(member).decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    raise UserError(f"its {extension} is not UTF-8: {error.reason}") from None
            else:
                modality = modality_of(f"x.{extension}")
                if modality in found:
                    raise UserError(f"has two {modality}s")
                found[modality] = EmbeddedMedium(
                    self.path, member, f".{extension}", functools.partial(self._bytes, member),
                    functools.partial(self._label, member),
                )  # fmt: skip
        fields = parse_json(texts.pop("json")) if "json" in texts else {}
        if not isinstance(fields, dict):
            raise UserError("its json should be an object")
        if texts:
            fields["caption"] = next(iter(texts.values())).strip()
        if len(found) == 1 and isinstance(fields.get("caption"), str) and "conversations" not in fields:
            (modality,) = found
            return {"caption": fields["caption"], f"{modality}_name": found[modality]}  # what else a json has: metadata
        return fields | found


def _tar_index(path: str) -> Arrays:
    """The members of a tar, and of each sample the first; the last of `starts` is the number of members."""
    rows, starts, last = [], [], None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                tar.members = []  # tarfile keeps all
                if not member.isfile() or not stem:
                    continue
                if (key := (folder, stem)) != last:
                    last = key
                    starts.append(len(rows))
                kind = extension.lower()
                code = _EXTENSIONS.index(kind) if kind in _EXTENSIONS else -1
                rows.append((member.offset, member.offset_data, member.size, code))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is no readable tar (compressed ones have to be unpacked): {first_line(error)}"
        ) from None
    if not rows:
        raise UserError(f"{path} holds no samples")
    headers, begins, sizes, kinds = np.array(rows, np.int64).T
    starts = np.array([*starts, len(rows)], np.int64)
    return Arrays(
        {"headers": headers, "begins": begins, "sizes": sizes, "kinds": kinds.astype(np.int8), "starts": starts}
    )


class ArrayRecords(Sequence[Any]):
    """The records of an ArrayRecord file, each the UTF-8 text of a JSON object."""

    unit = "record"

    def __init__(self, path: str):
        """
        Raises:
          UserError: it is no ArrayRecord file.
        """
        self.path, self.identity = path, identity(path)
        self._process, self._reader = 0, None
        try:
            self._count = self._open().num_records()
        except Exception as error:  # the library has no types of its own
            raise UserError(f"{path} is no readable ArrayRecord file: {first_line(error)}") from None

    def _open(self) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        if self._reader is None or self._process != os.getpid():
            self._reader, self._process = ArrayRecordReader(self.path), os.getpid()
        return self._reader

    def __len__(self) -> int:
        return self._count

    def place(self, index: int) -> str:
        """How messages call a record."""
        return f"record {index}"

    def __getitem__(self, index: Any) -> Any:
        (content,) = self._open().read(int(index), int(index) + 1)  # ten times as fast as read([index])
        try:
            return parse_json(content.decode())
        except UnicodeDecodeError:
            raise UserError("is no JSON text in UTF-8") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


class ArrowRecords(Sequence[dict[str, Any]]):
    """The rows of Arrow files, memory-mapped. Media are columns of bytes, or of {"bytes", "path"} as datasets writes.

    Attributes:
      columns: their names.
    """

    unit = "row"

    def __init__(self, path: str, files: Sequence[str], identity: str = ""):
        """
        Args:
          path: for messages.
          files: Arrow files, as streams or with a footer, of the same columns.
          identity: of what is at `path`.

        Raises:
          UserError: one cannot be read.
        """
        arrow = _pyarrow()
        self.path, self.identity, self._files = path, identity, list(files)
        self._batches: list[Any] = []
        for file in self._files:
            try:
                mapped = arrow.memory_map(file)
                try:
                    self._batches += arrow.ipc.open_file(mapped).read_all().to_batches()
                except arrow.ArrowInvalid:
                    mapped.seek(0)
                    self._batches += arrow.ipc.open_stream(mapped).read_all().to_batches()
            except (arrow.ArrowException, OSError) as error:
                raise UserError(f"{file} is no readable Arrow file: {first_line(error)}") from None
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.columns = tuple(self._batches[0].schema.names) if self._batches else ()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, index: int) -> str:
        """How messages call a row."""
        return f"row {index}"

    def __getitem__(self, index: Any) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[number], int(index - self._starts[number])
        found = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            value = self._medium(name, column, row) if _holds_media(column.type) else column[row].as_py()
            if value is not None:
                found[name] = value
        return found

    def _medium(self, name: str, column: Any, row: int) -> Any:
        """The medium of a cell, or the path that it has in place of bytes."""
        nested = _pyarrow().types.is_struct(column.type)
        values = column.field("bytes") if nested else column
        if not column[row].is_valid:
            return None
        path = column.field("path")[row].as_py() if nested and column.type.get_field_index("path") >= 0 else None
        if not values[row].is_valid:
            return path
        label = path or f"row {row}"
        if "." not in label:
            label += {"image": ".png", "audio": ".wav", "video": ".mp4"}.get(name, "")
        suffix = pathlib.PurePosixPath(label).suffix
        return EmbeddedMedium(self.path, row, suffix, lambda: values[row].as_py(), lambda: label)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowRecords, (self.path, self._files, self.identity)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise UserError("reading Parquet and Arrow files needs pyarrow: pip install 'nextgpt-jax[parquet]'") from None
    return pyarrow


def _holds_media(kind: Any) -> bool:
    types = _pyarrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def parquet_records(path: str) -> ArrowRecords:
    """The rows of a Parquet file, which is decompressed once, to an Arrow file in `cache_folder()`: rows of a Parquet
    file cannot be reached one by one.

    Raises:
      UserError: it cannot be read, or there is no space.
    """
    arrow = _pyarrow()
    known = identity(path)
    try:
        status = os.stat(path)
        key = f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"
        target = cache_folder() / "arrow" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
        if not target.exists():
            with alone(target):
                _decompress(path, target)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Parquet file: {first_line(error)}") from None
    return ArrowRecords(path, [str(target)], known)


def _decompress(path: str, target: pathlib.Path) -> None:
    arrow = _pyarrow()
    import pyarrow.parquet

    if target.exists():  # by another process, meanwhile
        return
    parquet = pyarrow.parquet.ParquetFile(path)
    with atomic_write(target) as temporary, arrow.OSFile(str(temporary), "wb") as sink:
        with arrow.ipc.new_file(sink, parquet.schema_arrow) as writer:
            for batch in parquet.iter_batches(_BATCH):
                writer.write_batch(batch)


def folder_records(path: str) -> Iterator[Any]:
    """The records of the data files in a folder: what datasets' save_to_disk or a clone of a dataset's repository
    holds, or archives.

    Raises:
      UserError: it has none, or files of different kinds.
    """
    folder = pathlib.Path(path)
    if (folder / "state.json").is_file():
        yield ArrowRecords(path, [str(file) for file in sorted(folder.glob("*.arrow"))], identity(path))
        return
    kinds = {
        ".parquet": parquet_records,
        ".tar": TarRecords,
        ".array_record": ArrayRecords,
        ".arrayrecord": ArrayRecords,
    }
    files = sorted(file for file in folder.rglob("*") if file.suffix in kinds)
    if not files:
        raise UserError(f"{path} holds no data files ({', '.join(kinds)}, or what save_to_disk of datasets writes)")
    if len({file.suffix for file in files}) > 1:
        raise UserError(
            f"{path} holds files of different kinds: {files[0].name}, {files[-1].name}: name them one by one"
        )
    for file in files:
        yield kinds[file.suffix](str(file))
