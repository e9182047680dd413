"""The three stages as a table: what is trained, and on what.

Trainable is a filter over parameter paths and types; gradients and optimizer state exist for these leaves only.
The rows of the new tokens are trained in every stage: the reference trains its whole embedding and head there.
"""

import dataclasses
from collections.abc import Callable, Mapping

from flax import nnx

from nextgpt_jax.models.nextgpt import is_trainable


def _under(*names: str) -> Callable[..., bool]:
    return lambda path, _: path[0] in names


SIGNAL = _under("signal_embed", "signal_head")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row: the filter of trainable leaves, the kind of samples (see data/samples.py), and the weights of the
    alignment losses of modalities where they are not 1."""

    trainable: object
    samples: str
    description: str
    alignment: Mapping[str, float] = dataclasses.field(default_factory=dict)


STAGES = {
    "stage1": Stage(nnx.Any(SIGNAL, _under("input_proj")), "describe", "encoding-side alignment"),
    "stage2": Stage(nnx.Any(SIGNAL, _under("output_proj")), "generate", "decoding-side alignment"),
    "stage3": Stage(
        nnx.Any(SIGNAL, _under("input_proj", "output_proj"), nnx.LoRAParam),
        "instructions",
        "instruction tuning",
        {"video": 2.0},
    ),
}

# All that any stage trains: what checkpoints hold, so that every stage can follow every other.
DELTA = is_trainable


def param_group(path: tuple) -> str:
    """The name under which `optim.lr_multipliers` has a leaf of DELTA."""
    if path[-1] in ("lora_a", "lora_b"):
        return "lora"
    return "signal" if path[0] in ("signal_embed", "signal_head") else path[0]
