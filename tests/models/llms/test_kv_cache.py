"""The cache in 8 bits beside the one in the model's dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.llms import kv_cache
from nextgpt_jax.models.stacking import unstack
from tests.models.llms.reference import IDS, decode, original, ours, run
from tests.parity import relative_error


@pytest.mark.parametrize(
    "model_class, stacked", [(transformers.LlamaForCausalLM, True), (transformers.Qwen2ForCausalLM, False)]
)
def test_logits_are_close_to_those_without_a_cache(model_class, stacked):
    """A prompt of 4 tokens, then each token by itself. With a cache in float32 the same is equal to 1e-5."""
    model = ours(original(model_class, num_key_value_heads=2))
    embeddings, (_, expected) = model.embed_tokens(jnp.asarray(IDS)), run(model, IDS)
    if not stacked:
        model.layers = unstack(model.layers)
    cache, parts = model.init_cache(2, 12, jnp.int8), []
    for start, stop in [(0, 4), *((i, i + 1) for i in range(4, 9))]:
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start)) if start else None
        part, cache = decode(model, embeddings[:, start:stop], cache, positions)
        parts.append(model.logits(part))
    logits = jnp.concatenate(parts, 1)
    assert relative_error(logits[:, :4], expected[:, :4]) < 1e-5  # a prompt attends to itself as it is
    assert 1e-4 < relative_error(logits[:, 4:], expected[:, 4:]) < 0.02
    written = jax.tree.leaves(cache)
    assert {str(x.dtype) for x in written} == {"int8", "float32"}
    assert not any(np.asarray(x)[..., 9:, :, :].any() for x in written)


def test_bytes_of_a_cache():
    """A byte per number and four per token and head, beside four or two per number."""
    model = nnx.eval_shape(lambda: ours(original(transformers.LlamaForCausalLM, num_key_value_heads=2)))
    vectors = 2 * model.config.num_hidden_layers * 3 * 12 * 2  # keys and values of 3 rows of 12 slots, 2 heads
    for dtype, width in ((jnp.int8, 8 + 4), (jnp.bfloat16, 2 * 8), (jnp.float32, 4 * 8)):
        cache = jax.eval_shape(lambda dtype=dtype: model.init_cache(3, 12, dtype))
        assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) == vectors * width
        assert all(x.ndim == 5 and x.shape[:4] == (2, 3, 12, 2) for x in jax.tree.leaves(cache))


def test_integers_and_scales():
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32) * 10.0 ** np.arange(-38, 7, 10)[:, None]
    x[0] = 0
    values, scales = (np.asarray(y) for y in kv_cache.quantize(jnp.asarray(x)))
    assert (np.abs(values).max(-1) == [0, 127, 127, 127, 127]).all()
    assert (np.abs(values * scales - x) <= 0.5001 * scales).all()


def test_other_names_are_refused():
    kv_cache.check("")
    kv_cache.check("int8")
    with pytest.raises(UserError, match="serving.kv_cache: 'int4' is not one of int8, or nothing"):
        kv_cache.check("int4")
