"""Atomic writes of files and folders, and one-line errors."""

import os
import pathlib
import subprocess
import sys

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_folder, atomic_write, check_folder, format_size, reading


def test_writes_appear_when_they_are_done(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failed_writes_leave_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)) as caught, atomic_write(path) as file:
        file.write_text("new")
        raise error
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} can't be written: No space left on device"
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("a" * 300) / "a"):
        with pytest.raises(UserError, match=f"{path} can't be written: "), atomic_write(path) as file:
            file.write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_reading_names_the_file_and_the_first_line(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match=f"^no such poem: {path}$"), reading(path, "poem"):
        raise AssertionError
    path.touch()
    for error, reason in [(ValueError("it is bad\nvery bad"), "it is bad"), (KeyError(), "KeyError")]:
        with pytest.raises(UserError, match=f"^{path} is not a readable poem: {reason}$"), reading(path, "poem"):
            raise error
    with pytest.raises(UserError, match="^mine$"), reading(path, "poem"):
        raise UserError("mine")


def test_folders_appear_when_they_are_done(tmp_path):
    path = tmp_path / "new" / "a"
    with atomic_folder(path) as folder:
        assert not path.exists() and folder.parent == path.parent
        (folder / "file").write_text("text")
    assert [p.name for p in path.parent.iterdir()] == ["a"]
    with pytest.raises(UserError, match=f"^--to: {path} exists: give a new folder$"), atomic_folder(path, flag="--to"):
        raise AssertionError
    assert (path / "file").read_text() == "text"


def test_every_file_and_folder_is_synced_once_before_the_outermost_is_renamed(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def recording(handle):
        synced.append((pathlib.Path(os.readlink(f"/proc/self/fd/{handle}")), (tmp_path / "a").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recording)
    with atomic_folder(tmp_path / "a") as outer:
        (outer / "file").write_text("text")
        for name in "bc":
            with atomic_folder(outer / name) as inner:
                (inner / "deep" / "er").mkdir(parents=True)
                (inner / "deep" / "er" / "file").write_text("text")
        assert not synced
    everything = [outer, *(outer / path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*"))]
    assert sorted(path for path, renamed in synced if not renamed) == sorted(everything)
    assert [path for path, renamed in synced if renamed] == [tmp_path]
    with atomic_folder(tmp_path / "d"):
        pass
    assert synced[-1][0] == tmp_path


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failed_folders_leave_nothing(tmp_path, error):
    path = tmp_path / "a"
    with (
        pytest.raises(UserError if isinstance(error, OSError) else type(error)) as caught,
        atomic_folder(path) as folder,
    ):
        (folder / "file").write_text("text")
        raise error
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} can't be written: the disk is full"
    assert not list(tmp_path.iterdir())


def test_folders_of_killed_processes_are_removed_and_those_of_running_ones_kept(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    (tmp_path / f".a.partial-{finished.pid}").mkdir()
    running = tmp_path / f".a.partial-{os.getppid()}"
    running.mkdir()
    with atomic_folder(tmp_path / "a"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", running.name])


def test_folders_that_are_too_large(tmp_path):
    with pytest.raises(UserError, match="needs 1000000000.00 GB, and .* are free there"):
        with atomic_folder(tmp_path / "a", 10**18):
            raise AssertionError
    assert [format_size(n) for n in (999, 1000, 2_500_000)] == ["999 B", "1 KB", "2 MB"]


def test_folders_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(UserError, match=f"^--to: {tmp_path / 'file'} is a file: give a folder$"):
            check_folder(path, "--to")
    check_folder(tmp_path / "a" / "b", "--to")
    assert not (tmp_path / "a").exists()
