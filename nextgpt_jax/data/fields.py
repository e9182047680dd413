"""Checked access to the fields of records: what is missing, misspelled or of another type is refused by name."""

import reprlib
from collections.abc import Collection, Iterable, Mapping
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
    refuse_unknown(found, known, unused)
    return found


def refuse_unknown(names: Iterable[str], known: Collection[str], *unused: Collection[str]) -> None:
    """Raises UserError for the first name that is in none of the lists."""
    for name in names:
        if name not in known and not any(name in some for some in unused):
            raise UserError(f"unknown field {reprlib.repr(name)} (known: {', '.join(known)}){nearest(name, [*known])}")


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
    return _several(record, name, str)


def media_of(record: Mapping[str, Any], name: str) -> list[str | EmbeddedMedium]:
    """The media in the field `name` or its plural: names of files, or media inside the file of the record.

    Raises:
      UserError: it has both, or something else in it.
    """
    return _several(record, name, str | EmbeddedMedium)


def _several(record: Mapping[str, Any], name: str, kind: Any) -> list[Any]:
    given = [key for key in (name, f"{name}s") if key in record]
    if len(given) > 1:
        raise UserError(f"has both {given[0]} and {given[1]}: give one")
    value = record[given[0]] if given else []
    values = [value] if isinstance(value, kind) else value
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise UserError(f"{name} should be a text, or a list of texts")
    return list(values)  # readers take from it
