"""Stacked layers against single ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nextgpt_jax.models.layers import Linear
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import scan_layers, stack, unstack, unstack_array


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_stacked_and_listed_layers_agree_in_values_and_gradients():
    stacked = stack(lambda rngs: Linear(6, 6, rngs=rngs), 3, make_rngs(0))
    assert stacked.kernel.shape == (3, 6, 6)
    assert not np.array_equal(stacked.kernel[0], stacked.kernel[1])
    x, xs = jnp.asarray(random(2, 6)), jnp.arange(3.0)

    def run(module, remat="none"):
        return scan_layers(lambda x, layer, scale: jnp.tanh(layer(x)) + scale, x, module, xs, remat=remat)

    expected = x
    for i in range(3):
        expected = jnp.tanh(expected @ stacked.kernel[i] + stacked.bias[i]) + i
    np.testing.assert_allclose(run(stacked), expected, rtol=1e-5)
    np.testing.assert_allclose(run(unstack(stacked)), expected, rtol=1e-5)

    graphdef, state = nnx.split(stacked)
    plain, *others = (
        jax.grad(lambda s, remat=remat: run(nnx.merge(graphdef, s), remat).sum())(state)
        for remat in ("none", "dots", "full")
    )
    for recomputed in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), plain, recomputed)


def test_unstacking_can_give_up_the_stack():
    stacked = stack(lambda rngs: Linear(6, 6, rngs=rngs), 3, make_rngs(0))
    expected = np.asarray(stacked.kernel[...])
    apart = unstack(stacked, donate=True)
    np.testing.assert_array_equal([layer.kernel[...] for layer in apart], expected)
    assert stacked.kernel.get_raw_value().is_deleted()


def test_slices_stay_where_the_stack_was():
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec(None, "fsdp", "data")
    where = jax.sharding.NamedSharding(mesh, spec)
    for stacked in (jax.device_put(np.ones((3, 8, 4)), where), jax.ShapeDtypeStruct((3, 8, 4), float, sharding=where)):
        cut = unstack_array(stacked)
        assert [x.shape for x in cut] == [(8, 4)] * 3
        assert {x.sharding.spec for x in cut} == {jax.sharding.PartitionSpec("fsdp", "data")}
