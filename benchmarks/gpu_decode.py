"""HBM traffic of prefill and decode of the 7B on an H100, as compiled: with stacked and with separate layers.

    python benchmarks/gpu_decode.py [--topology h100:1] [--rows 1 8]

Needs the CUDA plugin (pip install '.[cuda]'), no GPU. "stacked" is the form of training: one scan over stacked layers,
LoRA not merged, XLA's default options. "separate" is the form of inference: the changes of prepare_llm
(nextgpt_jax/weights/load.py) and the options of nextgpt_jax/compiler.py.
"""

import argparse
import sys
from unittest import mock

import jax

from configs import nextgpt_7b
from nextgpt_jax import compiler
from nextgpt_jax.aot import programs
from nextgpt_jax.aot.compile import compile_programs
from nextgpt_jax.aot.report import ProgramCost, format_seconds
from nextgpt_jax.cli.flags import run_command


def compiled(program: str, topology: str, rows: int) -> ProgramCost:
    """The costs of prefill (512 tokens) or decode."""
    config = nextgpt_7b.get_config("infer")
    config.data.batch_size = rows
    return next(compile_programs(config, topology, programs=[program]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="h100:1")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    print(f"jax {jax.__version__}, {args.topology}")
    print("| program | rows | stacked | separate | ratio | time at the peak rate |\n" + "|---" * 6 + "|")
    for program in ("decode", "prefill"):
        for rows in args.rows:
            with (
                mock.patch.object(programs, "prepare_llm", lambda *_: None),
                mock.patch.dict(compiler.OPTIONS, clear=True),
            ):
                stacked = compiled(program, args.topology, rows)
            separate = compiled(program, args.topology, rows)
            cells = [
                program, rows, f"{stacked.hbm_bytes / 1e9:.1f} GB", f"{separate.hbm_bytes / 1e9:.1f} GB",
                f"{separate.hbm_bytes / stacked.hbm_bytes:.2f} x", format_seconds(separate.seconds["HBM"]),
            ]  # fmt: skip
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main(), sys.argv))
