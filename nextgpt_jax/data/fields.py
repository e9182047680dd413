"""Checked access to the fields of records: what is missing, misspelled or of another type is refused by name."""

import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from nextgpt_jax.data.media_files import EmbeddedMedium
from nextgpt_jax.errors import UserError, nearest


def present_fields(record: Any, known: Collection[str], unused: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a record or message that are not null.

    Raises:
      UserError: it is no object, or has a field that is in neither list.
    """
    if not isinstance(record, dict):
        raise UserError(f"should be an object, got {reprlib.repr(record)}")
    found = {name: value for name, value in record.items() if value is not None}
    if unknown := [name for name in found if name not in known and name not in unused]:
        name = unknown[0]
        raise UserError(f"unknown field {reprlib.repr(name)} (known: {', '.join(known)}){nearest(name, [*known])}")
    return found


def text_of(record: Mapping[str, Any], name: str) -> str:
    """The text in a field.

    Raises:
      UserError: it is missing, or no text.
    """
    if name not in record:
        raise UserError(f"lacks {name}")
    if not isinstance(record[name], str):
        raise UserError(f"{name} is {reprlib.repr(record[name])}, not a text")
    return record[name]


def texts_of(record: Mapping[str, Any], name: str) -> list[str]:
    """The texts of the field `name` or its plural, of which a record may have one.

    Raises:
      UserError: it has both, or something else in it.
    """
    return _several(record, name, str, "texts")


def media_of(record: Mapping[str, Any], name: str) -> list[str | EmbeddedMedium]:
    """The media in the field `name` or its plural: names of files, or media inside the file of the record.

    Raises:
      UserError: it has both, or something else in it.
    """
    return _several(record, name, str | EmbeddedMedium, "texts")


def _several(record: Mapping[str, Any], name: str, kind: Any, called: str) -> list[Any]:
    given = [key for key in (name, f"{name}s") if key in record]
    if len(given) > 1:
        raise UserError(f"has both {given[0]} and {given[1]}: give one")
    value = record[given[0]] if given else []
    values = [value] if isinstance(value, kind) else value
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise UserError(f"{name} should be a {called.removesuffix('s')}, or a list of {called}")
    return values
