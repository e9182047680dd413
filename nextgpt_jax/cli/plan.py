"""The command line of cost reports: compiles a config's programs for a topology and prints their costs."""

import json
import sys
from collections.abc import Sequence

from absl import flags

from nextgpt_jax.cli.flags import parse_flags, run_command
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write

USAGE = """{program} --config=NAME_OR_FILE[:VARIANT] --topology=TOPOLOGY [--config.a.b=value ...]

Compiles programs for a TPU or GPU topology, without any of its devices, and prints per-device memory, FLOPs, HBM
traffic, communication and a lower bound of the time. The exit status is 1 if a program does not fit. Options:"""


def define_flags(values: flags.FlagValues, prefix: str = "") -> None:
    """The flags of a cost report. `prefix` begins their help texts."""

    def define(kind: str, name: str, default: object, text: str) -> None:
        getattr(flags, f"DEFINE_{kind}")(name, default, prefix + text, flag_values=values)

    define("string", "topology", "", "target TPU topology, e.g. v5e:4x4, or GPUs, e.g. h100:8 or h100:2x8 (two hosts)")
    define("integer", "num_slices", 1, "number of TPU slices")
    define("list", "programs", ["step"], "step (a training step), prefill, decode, image, video, audio")
    define("list", "input_modalities", None, "media per training example as input, one of each; default: image")
    define("list", "output_modalities", None, "media per training example as output, one of each; default: image")
    define("string", "report", "", "also write the costs to this file, as JSON")
    for old, new in (("slices", "num_slices"), ("inputs", "input_modalities"), ("outputs", "output_modalities")):
        flags.DEFINE_alias(old, new, flag_values=values)  # names of earlier releases


def run(values: flags.FlagValues) -> int:
    """Prints the costs of the programs that the flags ask for. Returns the exit status: 1 if one does not fit.

    Raises:
      UserError: a flag or the config is wrong, or a compiler is not installed.
    """
    if not values.topology:
        raise UserError("--topology is missing: a TPU topology such as v5e:4x4, or GPUs such as h100:8")
    import jax

    from nextgpt_jax.aot.compile import compile_programs
    from nextgpt_jax.aot.report import format_program

    jax.config.update("jax_platforms", "cpu")
    costs = []
    for cost in compile_programs(
        values.config,
        values.topology,
        values.num_slices,
        values.programs,
        values.input_modalities,
        values.output_modalities,
    ):
        print(format_program(cost), flush=True)
        costs.append(cost)
    if values.report:
        with atomic_write(values.report) as temporary:
            temporary.write_text(json.dumps([cost.to_dict() for cost in costs], indent=1) + "\n")
    return 0 if all(cost.fits for cost in costs) else 1


def main(argv: Sequence[str]) -> int:
    """Parses flags and prints a cost report. Raises UserError for what the user can mend."""
    return run(parse_flags(argv, define_flags, USAGE))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
