"""Random keys for building large models under a trace."""

import jax
from flax import nnx


class _Stream(nnx.RngStream):
    """nnx.RngStream with the same keys, whose counter is set as a whole.

    Setting it by index, as Flax does, makes JAX format an error message that lists all operations traced so far, for
    each parameter: minutes for a model with thousands. https://github.com/jax-ml/jax/pull/40041 removes that message;
    this class can go once the oldest supported JAX has it.
    """

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def make_rngs(seed: int) -> nnx.Rngs:
    """nnx.Rngs(seed), with the same keys, that is fast under nnx.eval_shape and jit."""
    rngs = nnx.Rngs(seed)
    rngs.default = _Stream(seed, tag="default")
    return rngs
