"""The command line of training."""

import re
import sys
from collections.abc import Sequence

from absl import flags

from nextgpt_jax.cli import plan
from nextgpt_jax.cli.flags import configure_jax, parse_flags, run_command
from nextgpt_jax.errors import UserError
from nextgpt_jax.training import distributed
from nextgpt_jax.weights.run_steps import parse_step

USAGE = """{program} --config=NAME_OR_FILE:STAGE --workdir=DIR [--init_from=DIR] [--config.a.b=value ...]

Runs a training stage; the same command again resumes it. With --compile_only --topology=v5e:4x4 it prints an estimate
of the step's memory and time on that topology instead. Options:"""


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder for this run's checkpoints and logs", flag_values=values)
    flags.DEFINE_string("init_from", "", "workdir of an earlier stage: start from its weights", flag_values=values)
    flags.DEFINE_string(
        "init_step", "latest", "its checkpoint: latest, best (lowest loss) or a step", flag_values=values
    )
    flags.DEFINE_string("profile", "", "trace these steps (first,last), e.g. 10,12", flag_values=values)
    flags.DEFINE_bool(
        "compile_only", False, "compile for --topology and print the costs, without training", flag_values=values
    )
    plan.define_flags(values, prefix="with --compile_only: ")
    distributed.define_flags(values)


def main(argv: Sequence[str]) -> int | None:
    """Parses flags, then trains or prints a cost report. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE)
    if values.compile_only:
        return plan.run(values)
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: the folder for this run's checkpoints and logs")
    profile, init_step = _parse_profile(values.profile), parse_step(values.init_step, "--init_step")
    if values["init_step"].present and not values.init_from:
        raise UserError("--init_step chooses a checkpoint of --init_from: give both")
    configure_jax()
    distributed.initialize(values)
    from nextgpt_jax.training.loop import train  # after parsing, so that a typo is reported without slow imports

    evaluation = None
    if values.config.eval.every > 0 and values.config.eval.task:
        from nextgpt_jax.evaluation.during_training import TrainingEvaluation

        evaluation = TrainingEvaluation(values.config)
    train(values.config, values.workdir, values.init_from, profile, init_step=init_step, evaluation=evaluation)


def _parse_profile(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    found = re.fullmatch(r"(\d+),(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--profile={text}: give the first and the last step, such as 10,12")
    return int(found[1]), int(found[2])


def run() -> None:
    """Entry point of nextgpt-train and train.py."""
    sys.exit(run_command(main, sys.argv))
