"""Converts published weights to Orbax, in bounded memory, and back.

    python -m convert COMPONENT --source PATH_OR_HUB_ID --output DIR [--dtype bfloat16] [--dry_run] [--report FILE.json]
    python -m convert export COMPONENT --source DIR --output DIR [--dtype float16]

COMPONENT: llama (with --delta for Vicuna v0), imagebind, stable_diffusion, text_to_video, audioldm; lora (a peft
adapter, with --base); delta (NExT-GPT's own weights, with --config); nextgpt (every part that --config names).

What a training run has trained is exported from its workdir: `export delta`, or `export lora`, with --config and
--workdir in place of --source. `export llama` with --lora adds an adapter to the weights.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from convert.exports import export_to
from convert.imports import import_to
from nextgpt_jax.cli.flags import parse_flags, run_command
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.weights.components import LAYOUTS

_CONFIGURED = ("delta", "nextgpt")  # need the sizes that a config names


def _define(values: flags.FlagValues) -> None:
    def string(name: str, help: str) -> None:
        flags.DEFINE_string(name, "", help, flag_values=values)

    string("source", "a folder or file in the published layout, or a hub id; to export, a converted folder")
    string("output", "a new folder for the result")
    string("revision", "of the hub's repository; what it stands for now is recorded")
    flags.DEFINE_enum(
        "dtype", "", ["", "float32", "float16", "bfloat16"], "of the result; empty: as it is", flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "check that everything fits, and write nothing", flag_values=values)
    string("report", "write what becomes of each tensor to this file, as JSON")
    string("delta", "llama: the weights are the source's plus these (Vicuna v0)")
    flags.DEFINE_enum("growth", "zero", ["zero", "mean"], "llama: rows that --delta adds to", flag_values=values)
    flags.DEFINE_integer("vocab_size", 0, "llama: keep this many rows of embedding and head", flag_values=values)
    string("base", "lora: folder of the language model that the adapter belongs to")
    string("lora", "export llama: an adapter (published or converted) to add to the weights")
    string("workdir", "export delta, export lora: the training run")
    flags.DEFINE_bool("allow_partial", False, "delta: pieces that the file lacks stay out", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and runs the command. Raises UserError for what the user can mend."""
    words, known = list(argv[1:]), (*LAYOUTS, "nextgpt")
    export = words[:1] == ["export"]
    words = words[1:] if export else words
    if not words or words[0].startswith("-"):
        if any(word in ("-h", "--help") for word in words):
            print(__doc__)
            return
        raise UserError(f"which component? python -m convert {'export ' * export}COMPONENT ... with {', '.join(known)}")
    component = words[0]
    if component not in known:
        raise UserError(f"unknown component {component!r} (there are {', '.join(known)}){nearest(component, known)}")
    configured = component in _CONFIGURED or (export and any(w.lstrip("-").startswith("workdir") for w in words))
    values = parse_flags([argv[0], *words[1:]], _define, __doc__, config=configured)
    if not values.output and not (values.dry_run and not export):
        raise UserError("--output=DIR is missing")
    if not values.source and not values.workdir and component != "nextgpt":
        raise UserError(f"--source is missing: {LAYOUTS[component]}")
    (export_to if export else import_to)(pathlib.Path(values.output), component, values)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
