"""Config files in the hub's layout, read into the frozen dataclasses of the models."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from nextgpt_jax.errors import UserError
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


def config_from_dict(cls: type, config: Mapping[str, Any], supported: Mapping[str, tuple] | None = None) -> Any:
    """Builds the dataclass `cls` from a hub config.

    Args:
      cls: a dataclass; its fields are filled from keys of the same name (lists become tuples).
      config: the content of a config.json. Other keys are ignored, unless they are in `supported`.
      supported: the supported values of keys that change the architecture.

    Raises:
      UserError: a value is not supported, a required field is missing, or the dataclass rejects a value.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{cls.__name__}: the config is a {type(config).__name__}, not an object")
    for key, values in (supported or {}).items():
        if key in config and config[key] not in values:
            wanted = " or ".join(repr(v) for v in values)
            raise UserError(f"{cls.__name__}: {key}={config[key]!r} is not supported (only {wanted})")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    taken = {k: _freeze(v) for k, v in config.items() if k in fields and v is not None}
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in taken]
    if missing:
        raise UserError(f"{cls.__name__}: config lacks {', '.join(missing)}")
    try:
        return cls(**taken)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{cls.__name__}: {error}") from None


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value
