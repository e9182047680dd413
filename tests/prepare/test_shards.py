"""Folders of prepared data: whole files only, whatever interrupts their writing."""

import os
import socket

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.prepare.merging import merge
from nextgpt_jax.prepare.shards import Folder

COUNT = 2
PLAN = {"task": "captioning", "sources": [{"path": "a.json", "records": 10}], "unusable": [], "samples": 6}


class Killed(BaseException):
    pass


def write(path):
    """What a process does, from any state."""
    folder = Folder(path)
    folder.begin(PLAN)
    made = []
    for number in range(COUNT):
        name = folder.name(number, COUNT)
        if folder.part(name) is None:
            made.append(number)
            records = [bytes([number]) * size for size in (10, 500, 3)]
            folder.write_shard(name, records, lambda: {"inputs": {"image": 1}, "outputs": {}, "skipped": []})
    assert merge(folder, PLAN, COUNT, 0.0)
    return made


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_killed_at_any_operation_the_same_command_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """And what is visible of a file is always whole."""
    write(tmp_path / "whole")
    expected, real, redone = contents(tmp_path / "whole"), {n: getattr(os, n) for n in ("fsync", "replace")}, []
    for killed_at in range(100):
        counter = iter(range(killed_at + 1))

        def call(name, *arguments, counter=counter):
            if next(counter, None) is None:
                raise Killed
            return real[name](*arguments)

        path = tmp_path / f"{killed_at}"
        for name in real:
            monkeypatch.setattr(os, name, lambda *arguments, name=name, call=call: call(name, *arguments))
        try:
            write(path)
        except Killed:
            done = True
        else:
            done = False
        monkeypatch.undo()
        visible = {name: content for name, content in contents(path).items() if "partial" not in name}
        assert visible.items() <= expected.items()
        assert ("manifest.json" in visible) <= (visible.keys() == expected.keys())
        redone.append(write(path))
        assert contents(path) == expected
        if not done:
            break
    assert killed_at > 10 and sorted(map(len, redone), reverse=True) == list(map(len, redone))  # nothing finished again


def test_leftovers_of_dead_processes_are_removed_and_damaged_shards_redone(tmp_path):
    write(tmp_path / "a")
    mine, other = (tmp_path / "a" / f".x.partial-{host}-999999999" for host in (socket.gethostname(), "elsewhere"))
    for file in (mine, other):
        file.write_text("x")
    shard = tmp_path / "a" / "shard-00001-of-00002.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert write(tmp_path / "a") == [1] and shard.read_bytes() == whole
    assert not mine.exists() and other.exists()


def test_a_folder_belongs_to_one_plan(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match='prepared with another task .*"captioning", now "generation"'):
        Folder(tmp_path).begin(PLAN | {"task": "generation"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds something else: give a new folder"):
        Folder(tmp_path / "other").begin(PLAN)


def test_too_many_skipped_records_leave_no_manifest(tmp_path):
    folder = Folder(tmp_path)
    folder.begin(PLAN)
    skipped = [{"source": "a.json", "record": "record 3", "reason": "no such image: b.png"}]
    name = folder.name(0, 1)
    folder.write_shard(name, [], lambda: {"inputs": {}, "outputs": {}, "skipped": skipped})
    with pytest.raises(UserError, match="1 of 10 records cannot be prepared .*record 3, because: no such image"):
        merge(folder, PLAN, 1, 0.05)
    with pytest.raises(UserError, match="no record could be prepared"):
        merge(folder, PLAN, 1, 0.5)
    assert not (tmp_path / "manifest.json").exists() and not merge(folder, PLAN, 2, 0.5)
