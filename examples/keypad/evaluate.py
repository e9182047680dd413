"""Everything that docs/keypad.md measures: `nextgpt evaluate keypad`, then conversations (conversations.py).

python -m examples.keypad.evaluate [--workdir=RUN] [--output=DIR] [more flags of nextgpt evaluate]
"""

import sys
from collections.abc import Sequence

from examples.keypad import conversations
from nextgpt_jax.cli import evaluate
from nextgpt_jax.cli.flags import run_command


def main(argv: Sequence[str]) -> None:
    """Evaluates, and holds the conversations."""
    program, *flags = argv
    evaluate.main([program, "keypad", "--config=keypad", *flags])
    workdir = [flag.removeprefix("--workdir=") for flag in flags if flag.startswith("--workdir=")]
    conversations.main([program, *(["--workdir", workdir[-1]] if workdir else [])])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
