"""Shared by all commands: flags with a config file, one-line errors, JAX's settings."""

import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import config_flags

from nextgpt_jax.chips import GPU_MEMORY_FRACTION
from nextgpt_jax.config import current_name, current_value, field_names, is_tuple, parse_tuple
from nextgpt_jax.config_files import config_names, load_config
from nextgpt_jax.errors import UserError, nearest, printable


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Runs `main(argv)`: a UserError becomes one line on stderr and exit status 2; a bug keeps its traceback."""
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"error: {' '.join(printable(str(error)).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parse_flags(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None], usage: str, *, config: bool = True
) -> flags.FlagValues:
    """Parses the flags that `define` adds and, if `config`, --config with its overrides: `.config` is then the loaded
    ExperimentConfig.

    Args:
      usage: first part of --help; "{program}" stands for the command's name.

    Raises:
      UserError: an unknown flag, config or override, or a value of the wrong type; with the nearest name.
    """
    values = flags.FlagValues()
    define(values)
    if any(arg in ("-h", "--help", "-help") for arg in argv[1:]):
        _print_help(values, usage.replace("{program}", pathlib.Path(argv[0]).name), config)
        raise SystemExit(0)
    argv = list(argv)
    try:
        if config:
            spec, argv = _take_config(argv)
            arguments = iter(argv[1:])
            argv = [argv[0], *(_current_override(arg, arguments) for arg in arguments)]
            config_flags.DEFINE_config_dataclass("config", load_config(spec), "", flag_values=values, sys_argv=argv)
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{nearest(error.flagname, list(values))}") from None
    except flags.Error as error:
        raise UserError(str(error).replace("flag --config.", "--config.").splitlines()[0]) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: write options as --name=value")
    return values


def _print_help(values: flags.FlagValues, usage: str, config: bool) -> None:
    print(usage)
    if config:
        print(f"  --config: config file or name ({', '.join(config_names())}), with :VARIANT")
        print("  --config.SECTION.FIELD: sets a field of the config; nextgpt_jax/config.py lists them")
    for name in values:  # in the order of their definition
        flag = values[name]
        if not flag.help.startswith("Alias for "):
            default = f" (default {flag.value!r})" if flag.value not in (None, "", []) else ""
            print(f"  --{name}: {flag.help.split(chr(10))[0].rstrip(';')}{default}")
    sys.stdout.flush()


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
    """The value of --config, and the other arguments.

    Raises:
      UserError: it is missing.
    """
    spec, rest, arguments = "", [argv[0]], iter(argv[1:])
    for arg in arguments:
        name, equals, value = arg.partition("=")
        if name in ("--config", "-config"):
            spec = value if equals else next(arguments, "")
        else:
            rest.append(arg)
    if not spec:
        raise UserError(f"--config is missing: a file or one of {', '.join(config_names())}, such as --config=keypad")
    return spec, rest


def _current_override(arg: str, following: Iterator[str]) -> str:
    """An argument with the current name of the field, and the current value, if it is an override of the config.

    Args:
      arg: any argument.
      following: the arguments after it; the value of a tuple field is taken from there if `arg` has none.

    Raises:
      UserError: there is no such field.
    """
    found = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", arg, re.DOTALL)
    if not found:
        return arg
    name, value = current_name(found[1]), found[2]
    known = [f"config.{field}" for field in field_names()]
    if f"config.{name}" not in known:
        raise UserError(f"unknown override --config.{found[1]}{nearest(f'config.{name}', known)}")
    if name != found[1]:
        print(f"note: --config.{found[1]} is now --config.{name}", file=sys.stderr)
    if value is None and is_tuple(name):
        value = next(following, "")
    if value is None:
        return f"--config.{name}"
    if (current := current_value(name, value)) != value:
        print(f"note: --config.{name}={value} is now {current}", file=sys.stderr)
    return f"--config.{name}={parse_tuple(name, current) if is_tuple(name) else current}"


def configure_jax() -> None:
    """Sets JAX's options; call it before JAX looks for devices.

    Compiled programs and XLA's choices of GPU kernels are kept in JAX_COMPILATION_CACHE_DIR, by default in the user's
    cache folder. JAX may allocate chips.GPU_MEMORY_FRACTION of a GPU's memory (XLA_PYTHON_CLIENT_MEM_FRACTION) rather
    than its default of 75 %.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "nextgpt_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def parse_shard(text: str) -> tuple[int, int]:
    """The number of a process and of those that share its work, from "i/n".

    Raises:
      UserError: it is something else.
    """
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(f"--shard={text}: give i/n with i from 0 to n - 1, such as 0/8")
    return int(found[1]), int(found[2])
