"""Config files: Python files with a function `get_config(variant)` that returns an ExperimentConfig.

They are found by path or, if they are in this project's configs/ folder, by name: "keypad:stage1".
"""

import dataclasses
import pathlib
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import Any

from nextgpt_jax.config import ExperimentConfig, set_field
from nextgpt_jax.errors import UserError, nearest


def load_config(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Loads an experiment config, and sets some of its fields.

        load_config("keypad:stage1", {"data.batch_size": 64, "optim.lr": 1e-3})

    Args:
      name_or_path: a config file, or the name of one of this project (`config_folder()`), with ":VARIANT" for its
        `get_config` if wanted. A file of this path goes before a name.
      overrides: values by dotted field name.

    Raises:
      UserError: there is no such config, variant or field, a value is of another type, or the file has an error.
    """
    path, variant = _split(name_or_path)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
        config = module.get_config(*variant)
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = ":".join(map(str, (path, *lines[-1:])))
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"get_config of {path} should return an ExperimentConfig, not {config!r:.60}")
    for name, value in (overrides or {}).items():
        set_field(config, name, value)
    return config


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """A config as nested dictionaries, for JSON."""
    return dataclasses.asdict(config)


def config_from_dict(content: Mapping[str, Any], where: str, like: ExperimentConfig | None = None) -> ExperimentConfig:
    """The config that `config_to_dict` was given, or that of an earlier release; fields that are missing keep their
    defaults.

    Args:
      content: nested dictionaries.
      where: the file they are from, for messages.
      like: a config whose sections may have more fields than this package's.

    Raises:
      UserError: a field is unknown, or of another type.
    """
    config = _defaults(like or ExperimentConfig())

    def fill(prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                fill(f"{prefix}{name}.", value)
            else:
                set_field(config, f"{prefix}{name}", value)

    try:
        fill("", content)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config


def _defaults(config: Any) -> Any:
    """A config with the same sections, and the defaults of their fields."""
    found = type(config)()
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            setattr(found, field.name, _defaults(value))
    return found


def _split(name_or_path: str) -> tuple[pathlib.Path, list[str]]:
    """The file of a config, and its variant if there is one."""
    name, colon, variant = name_or_path.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        path = config_folder() / f"{name}.py"
        if name not in config_names():
            if name.endswith(".py") or "/" in name:
                raise UserError(f"no such config file: {name}")
            known = config_names()
            raise UserError(f"no config {name!r} (there are {', '.join(known)}){nearest(name, known)}")
    return path.absolute(), [variant] if colon else []


def config_folder() -> pathlib.Path:
    """The folder of this project's configs: inside an installed package, next to the package in a checkout."""
    package = pathlib.Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """The names of this project's configs."""
    return sorted(file.stem for file in config_folder().glob("[!_]*.py"))


def unknown_variant(variant: str, known: Sequence[str]) -> UserError:
    """The error of a config file that is asked for a variant it does not have."""
    return UserError(f"unknown variant {variant!r} (there are {', '.join(known)}){nearest(variant, known)}")
