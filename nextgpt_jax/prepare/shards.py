"""The files of a folder of prepared data. A file appears whole or not at all, also after a crash of the machine.

parts/plan.json     what is prepared, from what and with what: a folder belongs to one plan
shard-K-of-N.array_record
parts/shard-K-of-N.json   what the shard holds and what was left out of it; it is written after the shard
manifest.json       written when all shards are there
"""

import contextlib
import hashlib
import json
import os
import pathlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nextgpt_jax.data.prepared import MANIFEST, WRITER_OPTIONS
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import is_running, sync_file
from nextgpt_jax.json_files import read_json

_PARTS, _PLAN, _PARTIAL = "parts", "plan.json", ".partial-"


class Folder:
    """A folder of prepared data that is being written, by one or several processes."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Claims the folder for a plan, or checks that it is this plan's.

        Raises:
          UserError: it holds something else, belongs to another plan, or cannot be written.
        """
        plan = json.loads(json.dumps(plan))
        file = self.path / _PARTS / _PLAN
        if file.exists():
            before = read_json(file)
            changed = [name for name in plan if not isinstance(before, dict) or before.get(name) != plan[name]]
            if changed:
                was = before.get(changed[0]) if isinstance(before, dict) else before
                raise UserError(
                    f"{self.path} holds data that was prepared with another {changed[0]} ({_brief(was)}, now "
                    f"{_brief(plan[changed[0]])}): give a new folder"
                )
            self._remove_leftovers()
            return
        if self.path.exists() and (not self.path.is_dir() or set(os.listdir(self.path)) - {_PARTS}):
            raise UserError(f"--output: {self.path} exists and holds something else: give a new folder")
        self._write_json(file, plan)

    def name(self, number: int, count: int) -> str:
        """The name of a shard."""
        return f"shard-{number:05d}-of-{count:05d}.array_record"

    def part(self, name: str) -> dict[str, Any] | None:
        """What a shard holds; None: it is not finished."""
        file = self._part_file(name)
        if not file.exists():
            return None
        part = read_json(file)
        shard = self.path / name
        try:
            whole = shard.is_file() and shard.stat().st_size == part["bytes"]
        except (KeyError, TypeError):
            whole = False
        return part if whole else None

    def write_shard(self, name: str, records: Iterable[bytes], describe: Any) -> dict[str, Any]:
        """Writes a shard, and then what it holds.

        Args:
          records: its records.
          describe: gives further fields of the part, once the records are written.

        Raises:
          UserError: it cannot be written.
        """
        from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

        count = 0
        with self._replacing(self.path / name) as temporary:
            try:
                writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
                for record in records:
                    writer.write(record)
                    count += 1
                writer.close()
                whole = ArrayRecordReader(str(temporary)).num_records() == count
            except (RuntimeError, ValueError) as error:  # the library has no types of its own
                raise UserError(f"{self.path / name} can't be written: {first_line(error)}") from None
            if not whole:
                raise UserError(f"{self.path / name} can't be written: is the disk full?")
            with temporary.open("rb", buffering=0) as file:
                digest, size = hashlib.file_digest(file, "sha256").hexdigest(), temporary.stat().st_size
        part = {"name": name, "samples": count, "bytes": size, "sha256": digest} | describe()
        self._write_json(self._part_file(name), part)
        return part

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes the manifest: from now on the folder is data."""
        self._write_json(self.path / MANIFEST, manifest)
        self._remove_leftovers()

    def _part_file(self, name: str) -> pathlib.Path:
        return self.path / _PARTS / f"{name.removesuffix('.array_record')}.json"

    def _write_json(self, file: pathlib.Path, value: Mapping[str, Any]) -> None:
        with self._replacing(file) as temporary:
            temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def _replacing(self, file: pathlib.Path) -> Iterator[pathlib.Path]:
        temporary = file.parent / f".{file.name}{_PARTIAL}{socket.gethostname()}-{os.getpid()}"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync_file(temporary)
            os.replace(temporary, file)
            sync_file(file.parent)
        except OSError as error:
            raise UserError(f"{file} can't be written: {error.strerror or error}") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Removes what killed processes of this machine left."""
        own = f"{_PARTIAL}{socket.gethostname()}-"
        for file in (*self.path.glob(".*"), *(self.path / _PARTS).glob(".*")):
            _, mark, process = file.name.partition(own)
            if mark and not is_running(process):
                file.unlink(missing_ok=True)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
