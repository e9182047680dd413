"""The command line of training: flags to training.loop."""

import sys
from collections.abc import Sequence

from absl import flags

from nextgpt_jax.command import enable_compilation_cache, parse_flags, run_command
from nextgpt_jax.errors import UserError

USAGE = """train.py --config=configs/FILE.py:STAGE --workdir=DIR [--init_from=DIR] [--config.a.b=value ...]

Runs a training stage; the same command again resumes it. Options:"""


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of this run's checkpoints and logs", flag_values=values)
    flags.DEFINE_string("init_from", "", "workdir of a previous stage to start from", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and trains. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE)
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: the folder for this run's checkpoints and logs")
    enable_compilation_cache()
    from nextgpt_jax.training.loop import train  # after the flags: a typo should not wait for imports

    train(values.config, values.workdir, values.init_from)


def run() -> None:
    """Entry point of nextgpt-train and train.py."""
    sys.exit(run_command(main, sys.argv))
