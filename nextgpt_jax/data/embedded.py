"""Media inside a file of records: members of a tar, cells of a table."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

from nextgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EmbeddedMedium:
    """A medium inside another file.

    Attributes:
      name: how messages call it; its suffix is the medium's.
      read: gives the medium's bytes.
    """

    name: str
    read: Callable[[], bytes] = dataclasses.field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.name


Source = pathlib.Path | EmbeddedMedium


@contextlib.contextmanager
def local_path(medium: Source) -> Iterator[pathlib.Path]:
    """The path of a medium as a file, which for one inside another file exists while the body runs.

    Raises:
      UserError: as the body, with the medium's name in place of that of the temporary file.
    """
    if isinstance(medium, pathlib.Path):
        yield medium
        return
    memory = "/dev/shm"
    folder = memory if os.access(memory, os.W_OK) else None
    suffix = pathlib.PurePosixPath(medium.name).suffix
    with tempfile.NamedTemporaryFile(suffix=suffix, dir=folder) as file:
        file.write(medium.read())
        file.flush()
        try:
            yield pathlib.Path(file.name)
        except UserError as error:
            raise UserError(str(error).replace(file.name, medium.name)) from None
