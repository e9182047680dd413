"""Errors of media that are given in memory, which have no file name."""

import contextlib
from collections.abc import Iterator

from nextgpt_jax.errors import UserError, first_line


@contextlib.contextmanager
def checked(kind: str) -> Iterator[None]:
    """Turns any error in the body into a UserError of one line that says which `kind` of content it was."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # arrays and PIL images raise many types
        raise UserError(f"this is not a usable {kind}: {first_line(error)}") from None
