"""Reading and writing files such that failures are one line and outputs are whole or not there."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from nextgpt_jax.errors import UserError, first_line


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives the body a temporary file in the folder of `path` (made if needed) to write; renames it to `path` after.

    The file gets mode 0644. If anything fails, what was at `path` stays and nothing else is left.

    Raises:
      UserError: an OSError came up, in the body or around it.
    """
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


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Turns whatever fails in the body into one line that names the file, what it should be (`kind`) and the reason.

    The file is opened once before the body: what decodes media is less clear about why a file cannot be opened.

    Raises:
      UserError: the file is missing or not regular, cannot be opened, or the body raised anything.
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
    except Exception as error:  # decoders raise many kinds; the first line says what is wrong
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} is not a readable {kind}: {reason}") from None
