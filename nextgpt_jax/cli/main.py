"""The command `nextgpt SUBCOMMAND ...`."""

import importlib
import sys
from collections.abc import Sequence

import nextgpt_jax
from nextgpt_jax.cli.flags import run_command
from nextgpt_jax.errors import UserError, nearest

_COMMANDS = {  # subcommand -> (module, in one line)
    "infer": ("cli.infer", "answer a prompt, a chat or a file of requests"),
    "serve": ("cli.serve", "serve OpenAI's API over HTTP"),
    "evaluate": ("cli.evaluate", "compute a table of the paper, or compare two runs"),
    "train": ("cli.train", "run a training stage"),
    "convert": ("convert", "convert published weights to Orbax, or export weights to the published layout"),
    "prepare": ("cli.prepare", "prepare training data: features, instruction data, a page to look at it"),
    "warmup": ("cli.warmup", "compile what a server and files of requests need, ahead of the first one"),
    "plan": ("cli.plan", "estimate memory, time and communication of a config on a TPU or GPU topology"),
}
USAGE = "\n".join(
    [
        "nextgpt SUBCOMMAND [options]    (nextgpt SUBCOMMAND --help lists its options)",
        "",
        *(f"  {name:<10}{text}" for name, (_, text) in _COMMANDS.items()),
        "",
        "  --version prints the version",
    ]
)


def main(argv: Sequence[str]) -> int | None:
    """Runs a subcommand. Raises UserError for input that the user can correct."""
    name = argv[1] if len(argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if name == "--version":
        print(nextgpt_jax.__version__)
        return 0
    if name not in _COMMANDS:
        raise UserError(f"unknown subcommand {name!r} (there are {', '.join(_COMMANDS)}){nearest(name, [*_COMMANDS])}")
    module = nextgpt_jax.submodule(_COMMANDS[name][0])
    if name == "convert":
        module = importlib.import_module(f"{module.__name__}.__main__")
    return module.main([f"nextgpt {name}", *argv[2:]])


def run() -> None:
    """Entry point of `nextgpt`."""
    sys.exit(run_command(main, sys.argv))
