"""Transforms and their inverses, prefixes of rules."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.weights import matching
from nextgpt_jax.weights.rules import CONV, COPY, LINEAR, POINTWISE, TRANSPOSED_CONV, Table, prefixed, rule
from tests.weights.toy import TABLE, in_memory

sizes = st.integers(1, 5)


@st.composite
def transform_and_shape(draw):
    kind = draw(st.sampled_from(["copy", "linear", "conv", "transposed_conv", "pointwise"]))
    if kind == "copy":
        return COPY, tuple(draw(st.lists(sizes, max_size=4)))
    if kind == "linear":
        return LINEAR, (draw(sizes), draw(sizes))
    if kind == "pointwise":
        return POINTWISE, (draw(sizes), draw(sizes), 1, 1)
    shape = draw(sizes), draw(sizes), *draw(st.lists(sizes, min_size=1, max_size=3))
    return (CONV if kind == "conv" else TRANSPOSED_CONV), shape


@settings(deadline=None)
@given(transform_and_shape(), st.sampled_from([np.float32, np.float16, np.int64, ml_dtypes.bfloat16]))
def test_every_transform_has_its_inverse(drawn, dtype):
    transform, shape = drawn
    w = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    flax = transform.to_flax(w)
    back = transform.to_torch(flax)
    assert (back.shape, back.dtype) == (w.shape, w.dtype)
    np.testing.assert_array_equal(back, w)
    assert sorted(flax.ravel().tolist()) == sorted(w.ravel().tolist())


@settings(deadline=None, max_examples=30)
@given(transform_and_shape(), st.integers(1, 4))
def test_stacked_tables_round_trip(drawn, layers):
    transform, shape = drawn
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}.w": rng.normal(size=shape).astype(np.float32) for i in range(layers)}
    target = nnx.State({"w": nnx.Param(jnp.zeros((layers, *transform.to_flax(tensors["layer.0.w"]).shape)))})
    table = Table((rule("layer.{i}.w", "w", transform),))
    back = matching.export(matching.load(in_memory(tensors), target, table), table)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)


def test_prefixes_go_on_either_side():
    rows = prefixed(list(TABLE.rules), torch=("part.", "module."), flax="inner.")
    assert rows[0].torch == ("part.conv_in.weight", "part.stem.conv.weight",
                             "module.conv_in.weight", "module.stem.conv.weight")  # fmt: skip
    assert rows[0].flax == "inner.conv.kernel"
