"""What train.py and infer.py share: flags with a config file, errors in one line, JAX's settings."""

import dataclasses
import difflib
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from nextgpt_jax.chips import GPU_MEMORY_FRACTION
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Runs `main(argv)`: a UserError becomes one line on stderr and exit status 2; a bug keeps its traceback."""
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parse_flags(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None], usage: str, *, config: bool = True
) -> flags.FlagValues:
    """Parses the flags that `define` adds, and, if `config`, `--config=FILE[:VARIANT]` with `--config.a.b=v` overrides.

    Raises:
      UserError: an unknown flag, variant or override, or a value of the wrong type; with the nearest name.
    """
    values = flags.FlagValues()
    if config:
        config_flags.DEFINE_config_file("config", None, "config file", flag_values=values, sys_argv=list(argv))
    define(values)
    if any(arg in ("-h", "--help", "-help") for arg in argv[1:]):
        print(usage, flush=True)
        for name in sorted(values):
            if "." not in name:
                print(f"  --{name}: {values[name].help} (default {values[name].value!r})")
        raise SystemExit(0)
    path = next((a.split("=", 1)[1] for a in argv[1:] if a.lstrip("-").startswith("config=")), None)
    if path is None and "--config" in argv:
        path = argv[argv.index("--config") + 1] if argv.index("--config") + 1 < len(argv) else None
    if path is None and config:
        raise UserError("--config=FILE[:VARIANT] is missing, such as --config=configs/keypad.py")
    if path and config and not pathlib.Path(path.split(":")[0]).is_file():
        raise UserError(f"--config: no such file: {path.split(':')[0]}")
    try:
        rest = values(list(argv))
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{nearest(error.flagname, list(values))}") from None
    except (KeyError, AttributeError) as error:
        raise UserError(_unknown_override(argv, error)) from None
    except flags.Error as error:
        if isinstance(error.__context__, UserError):
            raise error.__context__ from None
        raise UserError(str(error).replace("flag --config.", "--config.").splitlines()[0]) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: write options as --name=value")
    return values


def unknown_variant(variant: str, known: Sequence[str]) -> UserError:
    """The error of a config file that is asked for a variant it does not have."""
    return UserError(f"unknown variant {variant!r} (there are {', '.join(known)}){nearest(variant, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """ "; did you mean ...?" with the known name nearest to `name`, or nothing."""
    found = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    return f"; did you mean {found[0]}?" if found else ""


def _unknown_override(argv: Sequence[str], error: Exception) -> str:
    """Which override is unknown, and the field nearest to it."""
    fields = [f"config.{name}" for name in _leaves(ExperimentConfig())]
    for arg in argv[1:]:
        name = arg.lstrip("-").split("=")[0]
        if name.startswith("config.") and name not in fields:
            return f"unknown override --{name}{nearest(name, fields)}"
    return str(error)


def _leaves(config) -> list[str]:
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        names += [f"{field.name}.{leaf}" for leaf in _leaves(value)] if nested else [field.name]
    return names


def configure_jax() -> None:
    """To be called before JAX looks for devices. Compiled programs persist in JAX_COMPILATION_CACHE_DIR, by default
    under the user's cache folder, and so do XLA's choices of GPU kernels; JAX may use all of a GPU's memory but what
    CUDA itself and libraries take (XLA_PYTHON_CLIENT_MEM_FRACTION, without this 75 %).
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "nextgpt_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
