"""Conversion from the command line.

    python -m convert export nextgpt --config=FILE --workdir=RUN --output=DIR [--dtype=float16]

writes the trained weights of a run as DIR/model.safetensors, with the keys and shapes of the reference's
pytorch_model.pt: projections, LoRA, and the whole embedding and head with the new tokens' rows.
"""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags
from flax import nnx

from convert.nextgpt import export_delta
from convert.shards import save_safetensors
from nextgpt_jax.command import parse_flags, run_command
from nextgpt_jax.errors import UserError


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the training run to export", flag_values=values)
    flags.DEFINE_string("output", None, "folder for model.safetensors", flag_values=values)
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "of the written tensors", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and exports. Raises UserError for what the user can mend."""
    if "--help" in argv:
        print(__doc__)
        return
    if list(argv[1:3]) != ["export", "nextgpt"]:
        raise UserError("usage: python -m convert export nextgpt --config=FILE --workdir=RUN --output=DIR")
    values = parse_flags([argv[0], *argv[3:]], _define, __doc__)
    if not values.workdir or not values.output:
        raise UserError("--workdir=RUN and --output=DIR are needed")
    from nextgpt_jax.load import delta_table, load_trained

    model = load_trained(values.config.model, values.workdir, decoder_parts=("text_encoder",)).model
    path = pathlib.Path(values.output) / "model.safetensors"
    tensors = export_delta(nnx.state(model), delta_table(model.config))
    save_safetensors(tensors, path, dtype=np.dtype(values.dtype))
    print(f"{len(tensors)} tensors: {path}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
