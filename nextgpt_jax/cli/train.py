"""The command line of training: flags to training.loop."""

import re
import sys
from collections.abc import Sequence

from absl import flags

from nextgpt_jax.cli.flags import configure_jax, parse_flags, run_command
from nextgpt_jax.errors import UserError
from nextgpt_jax.training import distributed

USAGE = """train.py --config=configs/FILE.py:STAGE --workdir=DIR [--init_from=DIR] [--config.a.b=value ...]

Runs a training stage; the same command again resumes it. With --compile_only --topology=v5e:4x4 it says what the run
needs there instead. Options:"""


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of this run's checkpoints and logs", flag_values=values)
    flags.DEFINE_string("init_from", "", "workdir of a previous stage to start from", flag_values=values)
    flags.DEFINE_bool(
        "compile_only", False, "plan the run: compile it for --topology and train nothing", flag_values=values
    )
    flags.DEFINE_string(
        "topology",
        "",
        "of a plan: a TPU and its shape (v5e:4x4), or GPUs (h100:8, h100:2x8 for two hosts)",
        flag_values=values,
    )
    flags.DEFINE_integer("slices", 1, "of a plan: how many such slices", flag_values=values)
    flags.DEFINE_list(
        "programs", ["step"], "of a plan: step, or prefill, decode, image, video, audio", flag_values=values
    )
    flags.DEFINE_list("inputs", None, "of a plan: the media that each row reads", flag_values=values)
    flags.DEFINE_list("outputs", None, "of a plan: the media that each row asks for", flag_values=values)
    flags.DEFINE_string("report", "", "of a plan: write it to this file too, as JSON", flag_values=values)
    flags.DEFINE_string("profile", "", "first and last step of a trace, such as 10,12", flag_values=values)
    distributed.define_flags(values)


def main(argv: Sequence[str]) -> int | None:
    """Parses flags and trains or plans. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE)
    if values.compile_only:
        from nextgpt_jax.aot import plan

        if not values.topology:
            raise UserError("--topology is missing: what to plan for, such as v5e:4x4 or h100:8")
        return plan.run(
            values.config,
            topology=values.topology,
            slices=values.slices,
            programs=values.programs,
            inputs=values.inputs,
            outputs=values.outputs,
            report=values.report,
        )
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: the folder for this run's checkpoints and logs")
    profile = _span(values.profile)
    configure_jax()
    distributed.initialize(values)
    from nextgpt_jax.training.loop import train  # after the flags: a typo should not wait for imports

    train(values.config, values.workdir, values.init_from, profile)


def _span(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    found = re.fullmatch(r"(\d+),(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--profile={text}: give the first and the last step, such as 10,12")
    return int(found[1]), int(found[2])


def run() -> None:
    """Entry point of nextgpt-train and train.py."""
    sys.exit(run_command(main, sys.argv))
