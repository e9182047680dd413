"""Random keys and initial values, for building large models under a trace."""

import contextvars
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

M = TypeVar("M", bound=nnx.Module)
_zeros: contextvars.ContextVar[dict[tuple[int, ...], jax.Array] | None] = contextvars.ContextVar("zeros", default=None)


def abstract(make: Callable[[], M]) -> M:
    """The module that `make` builds, with shapes and dtypes in place of values (nnx.eval_shape).

    Initial values are not even traced: the random numbers of thousands of parameters would take most of the time.
    """
    token = _zeros.set({})
    try:
        return nnx.eval_shape(make)
    finally:
        _zeros.reset(token)


def draw(init: Callable[[jax.Array, Sequence[int]], jax.Array], rngs: nnx.Rngs, shape: Sequence[int]) -> jax.Array:
    """An initial value, float32: init(the next key of `params`, shape)."""
    if (zeros := _zeros.get()) is None:
        return init(rngs.params(), shape)
    shape = tuple(shape)
    if shape not in zeros:
        zeros[shape] = jnp.zeros(shape)
    return zeros[shape]


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
    """nnx.Rngs(seed), with the same keys, that is fast under jit."""
    rngs = nnx.Rngs(seed)
    rngs.default = _Stream(seed, tag="default")
    return rngs
