"""python -m convert: parses flags and calls convert_checkpoint or export_checkpoint."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from nextgpt_jax.allocator import keep_freed_memory
from nextgpt_jax.cli.flags import parse_flags, run_command
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import available_devices
from nextgpt_jax.weights.single_file import PREDICTION_TYPES

from .exports import export_checkpoint
from .imports import DTYPES, KNOWN, check_component, convert_checkpoint
from .options import SYSTEM, check_options

USAGE = """Converts published weights to Orbax parameters in bounded memory, and exports them again.

    {program} COMPONENT --source=PATH_OR_HUB_ID --output=DIR [--dtype=bfloat16] [--dry_run] [--report=FILE.json]
    {program} export COMPONENT --source=DIR --output=DIR [--dtype=float16] [--dry_run] [--report=FILE.json]

COMPONENT: llm (with --delta for Vicuna v0), encoder, decoder; lora (a peft adapter, with --base); delta (trained
NExT-GPT weights, with --config); nextgpt (every part that --config names). llama, imagebind, stable_diffusion,
text_to_video and audioldm are other names of the first three.

A training run is exported with `export delta` or `export lora`, and --workdir in place of --source. `export llm` with
--lora adds an adapter to the weights. Export needs --config for folders and runs of old versions only.

Options:"""


def _define(values: flags.FlagValues) -> None:
    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, "", text, flag_values=values)

    def enum(name: str, default: str, choices: Sequence[str], text: str) -> None:
        flags.DEFINE_enum(name, default, choices, text, flag_values=values)

    string("source", "folder or file in the published layout, or hub id OWNER/NAME[@REVISION]; export: converted one")
    string("output", "new folder for the result")
    string("revision", "branch, tag or commit of the hub repository; its commit is recorded in the manifest")
    enum("dtype", "", ["", *DTYPES], "dtype of floating-point tensors in the result; empty: unchanged")
    flags.DEFINE_bool("dry_run", False, "check everything, write nothing", flag_values=values)
    string("report", "JSON file to write shapes and dtypes of all tensors to; of a conversion with the source keys")
    string("delta", "llm: weights to add to the source's (Vicuna v0), a folder or hub id")
    enum("growth", "zero", ["zero", "mean"], "llm: values of the rows that --delta adds to embedding and head")
    flags.DEFINE_integer(
        "vocab_size", 0, "llm: number of rows of embedding and head to keep; 0: all", flag_values=values
    )
    string("tokenizer", "decoder in one file: folder or hub id with the tokenizer of its text encoder")
    enum("prediction_type", "", ["", *PREDICTION_TYPES], "decoder in one file: what its UNet predicts, not in the file")
    flags.DEFINE_bool(
        "ema", None, "decoder in one file, and --workdir: take the moving average of the weights", flag_values=values
    )
    string("base", "lora: folder or hub id of the language model that the adapter belongs to")
    string("lora", "export llm: adapter (published or converted) to add to the weights")
    string("workdir", "export delta, export lora: folder of the training run")
    flags.DEFINE_string(
        "step", "latest", "with --workdir: the checkpoint: latest, best (lowest loss) or a step", flag_values=values
    )
    flags.DEFINE_bool("allow_partial", False, "delta: accept a file that lacks some pieces", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and runs the command; `argv[0]` is how messages call it.

    Raises:
      UserError: as convert_checkpoint and export_checkpoint, or a flag is wrong.
    """
    words = list(argv[1:])
    export = words[:1] == ["export"]
    words = words[1:] if export else words
    if not words or words[0].startswith("-"):
        if any(word in ("-h", "--help") for word in words):
            print(USAGE.replace("{program}", argv[0]).removesuffix("\n\nOptions:"))
            return
        raise UserError(f"which component? {argv[0]} {'export ' * export}COMPONENT ... with {', '.join(KNOWN)}")
    component = words[0]
    check_component(component)
    given = [re.split("[.=]", word.lstrip("-"))[0] for word in words if word.startswith("-")]
    check_options(component, [name.replace("noema", "ema") for name in given], export=export)
    wants_config = "config" in given or (component in ("delta", SYSTEM) and not export)
    values = parse_flags([argv[0], *words[1:]], _define, USAGE, config=wants_config)
    if not values.output and not values.dry_run:
        raise UserError("--output=DIR is missing")
    keep_freed_memory()  # before there are threads
    available_devices()  # raises
    config = values["config"].value if "config" in values else None
    options: dict[str, Any] = {"config": config, "dtype": values.dtype or None}
    if export:
        options |= {
            name: values[name].value for name in ("source", "workdir", "step", "ema", "lora", "dry_run", "report")
        }
        export_checkpoint(component, values.output or None, **options, verbose=True)
    else:
        of_file = ("tokenizer", "prediction_type", "ema")
        names = ("revision", "base", "delta", "growth", "vocab_size", "allow_partial", *of_file, "dry_run", "report")
        options |= {name: values[name].value for name in names} | {"ema": bool(values.ema)}
        convert_checkpoint(component, values.source, values.output or None, **options, verbose=True)


if __name__ == "__main__":
    sys.exit(run_command(main, ["python -m convert", *sys.argv[1:]]))
