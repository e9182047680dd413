"""Atomic file and folder writes, and one-line errors for files that cannot be read or written.

Some functions take gs://BUCKET/NAME, too; see `is_remote`.
"""

import concurrent.futures
import contextlib
import contextvars
import errno
import functools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from nextgpt_jax.errors import UserError, first_line

_enclosing: contextvars.ContextVar[pathlib.Path | None] = contextvars.ContextVar("enclosing", default=None)
_LFS = b"version https://git-lfs.github.com/spec/v1"


def normal_path(path: str | os.PathLike) -> pathlib.Path:
    """`path` made absolute, without "..": TensorStore and Orbax take no other paths.

    Symbolic links are followed, as the system does before "..", but for that of a file: its target may have another
    suffix, as in the hub's cache.

    Of gs://BUCKET/NAME it is an etils.epath.Path, which has the methods of pathlib.Path.

    Raises:
      UserError: a URL of another kind, or one that cannot be reached.
    """
    if is_remote(path):
        return _reachable(path)
    path = pathlib.Path(path)
    if path.is_file() or not path.name:
        return path.parent.resolve() / path.name
    return path.resolve()


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` names an object of a bucket, gs://BUCKET/NAME, where training runs can be kept.

    Raises:
      UserError: it is a URL of another kind, or one that was made a pathlib.Path, which drops a slash.
    """
    text = os.fspath(path)
    scheme, slashes = found.groups() if (found := re.match(r"([a-z][a-z0-9]+):(//?)", text)) else ("", "")
    if scheme and slashes == "//" and scheme != "gs":
        raise UserError(f"{text}: {scheme}:// cannot be used here: give a folder or gs://BUCKET/NAME")
    if scheme == "gs" and slashes == "/":
        raise UserError(f"{text}: write a URL as text, gs://BUCKET/NAME, not as a pathlib.Path")
    return scheme == "gs"


def _reachable(path: str | os.PathLike) -> pathlib.Path:
    from etils import epath

    text = os.fspath(path)
    if not (bucket := text.removeprefix("gs://").split("/")[0]):
        raise UserError(f"{text}: which bucket? Write gs://BUCKET/NAME")
    _probe(f"gs://{bucket}")
    return epath.Path(text.rstrip("/"))


@functools.lru_cache(8)
def _probe(bucket: str) -> None:
    from etils import epath

    try:
        (epath.Path(bucket) / ".nextgpt").exists()
    except ImportError:
        raise UserError(f"{bucket} needs gcsfs: pip install 'nextgpt-jax[gcs]'") from None
    except Exception as error:  # of the network, or a refusal
        raise UserError(f"{bucket} cannot be reached: {first_line(error)}") from None


def append_text(path: pathlib.Path, text: str) -> None:
    """Adds to the end of a file. Objects of a bucket are written anew: they cannot grow."""
    if is_remote(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    with path.open("a") as file:
        file.write(text)


def cut_partial_line(path: pathlib.Path) -> int:
    """Removes the last line of a file if it has no end, as a killed process leaves it; returns the number of lines."""
    lines = whole = 0
    with path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
            lines += 1
    return lines


@contextlib.contextmanager
def local_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder on this machine for the files of `path`: itself, or if it is remote one whose files are copied to it in
    the end."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)
        for file in sorted(pathlib.Path(name).rglob("*")):
            if file.is_file():
                (path / str(file.relative_to(name))).write_bytes(file.read_bytes())


def base_name(path: str | os.PathLike) -> str:
    """The name of a file or folder, also if its path ends in "." or ".."."""
    return os.path.basename(os.path.abspath(path))


def refuse_lfs_pointer(path: str | os.PathLike) -> None:
    """Raises UserError if the file is Git LFS's stand-in for a large file, as a clone without LFS has it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # what cannot be read is its reader's to report
        if file.read(len(_LFS)) == _LFS:
            raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary file in the folder of `path` (created if needed); renames it to `path` when the body is done.

    The file gets mode 0644. If anything fails, `path` is unchanged and the temporary file is removed.

    Raises:
      UserError: an OSError, in the body or while creating or renaming the file.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder) / "file"
            _upload(pathlib.Path(folder) / "file", normal_path(path))
        return
    path, temporary = pathlib.Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        os.close(handle)
        temporary = pathlib.Path(name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _upload(file: pathlib.Path, target: pathlib.Path) -> None:
    try:
        target.write_bytes(file.read_bytes())
    except Exception as error:  # of the network, or a refusal
        raise UserError(f"{target} can't be written: {first_line(error)}") from None


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path, size: int = 0, flag: str = "--output") -> Iterator[pathlib.Path]:
    """Yields a hidden folder next to `path`; syncs it to disk and renames it to `path` when the body is done.

    If anything fails, the hidden folder is removed. A killed process leaves its hidden folder behind; the next call for
    the same `path` removes it.

    Args:
      path: the new folder. It must not exist, or be empty.
      size: bytes that the body will write, checked against the free space.
      flag: the option that gave `path`, for error messages.

    Raises:
      UserError: `path` exists, the disk is too small, or an OSError in the body.
    """
    path = check_new_folder(path, flag=flag)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.partial-*"):
            if not is_running(stale.name.rsplit("-", 1)[1]):
                shutil.rmtree(stale, ignore_errors=True)
        check_new_folder(path, size, flag)
        partial.mkdir()
        outside = _enclosing.get()
        within = outside is not None and path.is_relative_to(outside)  # the enclosing folder syncs all of it
        token = _enclosing.set(outside if within else partial)
        try:
            yield partial
        finally:
            _enclosing.reset(token)
        if not within:
            _sync(partial)
        if path.exists():
            path.rmdir()
        partial.rename(path)
        if not within:
            sync_file(path.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise UserError(f"{path} can't be written: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_running(pid: str) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # another user's process
        pass
    return True


def _sync(folder: pathlib.Path) -> None:
    """Syncs the files below a folder, and the entries of the folders, several at a time."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(sync_file, (folder, *folder.rglob("*"))))


def sync_file(path: pathlib.Path) -> None:
    """Waits until the content of a file, or the entries of a folder, are on disk."""
    with contextlib.suppress(*[OSError] * path.is_dir()):  # some file systems can't sync folders
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def check_new_folder(path: str | os.PathLike, size: int = 0, flag: str = "--output") -> pathlib.Path:
    """Checks that `path` can be created; returns it as `normal_path` does.

    Args:
      path: the new folder. It must not exist, or be empty.
      size: bytes that it will hold, checked against the free space.
      flag: the option that gave `path`, for error messages.

    Raises:
      UserError: `path` exists, cannot be created, or the disk is too small.
    """
    path = normal_path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{flag}: {path} exists: give a new folder")
    free = shutil.disk_usage(check_folder(path, flag)).free
    if size > free:
        raise UserError(f"{flag}: {path} needs {format_size(size)}, and {format_size(free)} are free there")
    return path


def check_folder(path: str | pathlib.Path, flag: str) -> pathlib.Path:
    """Checks that `path` is a writable folder or can be created; `flag` is the option that gave it. Returns the folder,
    or the nearest parent that exists.

    Raises:
      UserError: `path`, or its nearest existing parent, is a file or not writable.
    """
    path = normal_path(path)
    if is_remote(path):
        return path
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{flag}: {existing} is {'not writable' if existing.is_dir() else 'a file'}: give a folder")
    return existing


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Turns any failure in the body into a one-line error with the path, the expected `kind` of file and the reason.

    Decoders give unhelpful errors for unreadable files, so the file is opened once before the body runs.

    Raises:
      UserError: the file is missing, not a regular file or cannot be opened, or the body raised an exception.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is not a readable {kind}: not a regular file")
        path.open("rb").close()
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such {kind}: {path}") from None
    except Exception as error:  # decoders raise many types
        raise UserError(f"{path} is not a readable {kind}: {first_line(error)}") from None


def format_size(count: float) -> str:
    """A number of bytes with a decimal unit: "13.48 GB"."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
