"""The three stages as a table: what each trains, and on what.

Trainable is a filter over parameter paths and types; gradients and optimizer state exist for these leaves only. The
embedding and head rows of the new tokens are trained in every stage: the reference trains its whole embedding and head.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx


def _under(*names: str) -> Callable[..., bool]:
    return lambda path, _: path[0] in names


_SIGNAL = ("signal_embed", "signal_head")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
      trainable: the filter (of nnx.split) of trainable leaves.
      task: of `data.readers.read_samples`.
      alignment_weights: factors on the alignment losses, by output modality; 1 where absent.
    """

    trainable: Any
    task: str
    description: str
    alignment_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


STAGES = {
    "stage1": Stage(_under(*_SIGNAL, "input_proj"), "captioning", "encoding-side alignment"),
    "stage2": Stage(_under(*_SIGNAL, "output_proj"), "generation", "decoding-side alignment"),
    "stage3": Stage(
        nnx.Any(_under(*_SIGNAL, "input_proj", "output_proj"), nnx.LoRAParam),
        "conversation",
        "instruction tuning",
        {"video": 2.0},
    ),
}


def param_group(path: tuple) -> str:
    """The field of `optim.lr_multipliers` that applies to a trained parameter."""
    if path[-1] in ("lora_a", "lora_b"):
        return "lora"
    return "signal" if path[0] in _SIGNAL else path[0]
