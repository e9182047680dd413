"""Config files in the hub's layout, read into the frozen dataclasses of the models."""

import dataclasses
import math
import pathlib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.json_files import read_json


def read_config(path: str | pathlib.Path) -> dict[str, Any]:
    """Parses a JSON file that holds an object.

    Raises:
      UserError: the file is missing, cannot be read, is not JSON, or holds something else.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not an object")
    return config


def config_from_dict(
    cls: type,
    config: Mapping[str, Any],
    supported: Mapping[str, tuple] | None = None,
    harmless: Collection[str] = (),
    name: str = "",
) -> Any:
    """Builds the dataclass `cls` from a hub config. Every field of the config has to be known.

    Args:
      cls: a dataclass; its fields are filled from keys of the same name (lists become tuples).
      config: the content of a config.json.
      supported: other keys, of which only the values listed are implemented.
      harmless: other keys, whose values change nothing that is computed here.
      name: how messages begin; default: the name of the class.

    Raises:
      UserError: a key is unknown, a value is not supported or of another type, a required field is missing, or the
        dataclass rejects a value.
    """
    name, supported = name or cls.__name__, supported or {}
    if not isinstance(config, Mapping):
        raise UserError(f"{name}: the config is a {type(config).__name__}, not an object")
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    for key, value in config.items():
        if key in supported:
            if value not in supported[key]:
                wanted = " or ".join(repr(v) for v in supported[key])
                raise UserError(f"{name}: {key}={_shown(value)} is not supported (only {wanted})")
        elif key in fields:
            if not _fits(_freeze(value), hints[key]):
                quoted = ": write it without quotes" if isinstance(value, str) else ""
                raise UserError(f"{name}: {key}={_shown(value)} should be {_described(hints[key])}{quoted}")
        elif key not in harmless:
            raise UserError(
                f"{name}: {key}={_shown(value)} is not known here{nearest(key, [*fields, *supported])}; "
                "if it changes nothing that the model computes, remove it from the file"
            )
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [field for field in required if field not in config]:
        raise UserError(f"{name}: config lacks {', '.join(missing)}")
    try:
        return cls(**{key: _freeze(value) for key, value in config.items() if key in fields})
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{name}: {error}") from None


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field. Whole numbers are floats too; neither infinities nor NaN are."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, arg) for arg in args)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        args = args[:1] * len(value) if args[1:] == (...,) else args
        return len(args) == len(value) and all(map(_fits, value, args))
    if hint is float:
        return _fits(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _described(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_described(arg) for arg in args)
    if typing.get_origin(hint) is tuple:
        length = "" if args[1:] == (...,) else f" of {len(args)}"
        return f"a list{length}, each {_described(args[0])}"
    return _DESCRIBED.get(hint, f"a {getattr(hint, '__name__', hint)}")


_DESCRIBED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
}
