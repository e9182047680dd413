"""Random keys for traces."""

import jax
import numpy as np
from flax import nnx

from nextgpt_jax.models.layers import Linear
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import stack


def test_rngs_for_traces_give_the_same_keys():
    """Counted or split, traced or not."""

    def keys(rngs):
        stacked = stack(lambda rngs: Linear(3, 2, rngs=rngs), 2, rngs)
        return [jax.random.key_data(rngs.params()), stacked.kernel[...], jax.random.key_data(rngs.params())]

    for a, b, c in zip(keys(nnx.Rngs(5)), keys(make_rngs(5)), jax.jit(lambda: keys(make_rngs(5)))()):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
