"""A small module with a conversion table, and checkpoints of it."""

import numpy as np
from flax import nnx

from nextgpt_jax.models.layers import Conv, LayerNorm, Linear
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import stack
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.rules import CONV, Table, affine, norm
from nextgpt_jax.weights.torch_checkpoint import Checkpoint


class Toy(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.conv = Conv(2, 3, (3, 3), rngs=rngs)
        self.blocks = stack(lambda rngs: Linear(3, 4, rngs=rngs), 2, rngs)
        self.norm = LayerNorm(4)


TABLE = Table(
    rules=(
        *affine(("conv_in", "stem.conv"), "conv", CONV),
        *affine("blocks.{i}.fc", "blocks"),
        *norm("norm", "norm"),
    ),
    ignored=(r"blocks\.\d+\.inv_freq",),
)


def abstract() -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: Toy(rngs=make_rngs(0))))


def weights(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = matching.torch_shapes(abstract(), TABLE)
    tensors = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    return {**tensors, **changes}


def in_memory(tensors) -> Checkpoint:
    return Checkpoint.of("memory", tensors)


def load(tensors, **options) -> nnx.State:
    return matching.load(in_memory(tensors), abstract(), TABLE, **options)
