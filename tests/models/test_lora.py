"""Low-rank adaptation of a linear layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextgpt_jax.models.layers import Linear
from nextgpt_jax.models.lora import LoRAConfig, merge_lora
from nextgpt_jax.models.rngs import make_rngs


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def lora_linear(**options) -> Linear:
    linear = Linear(8, 4, lora=LoRAConfig(rank=2, alpha=6.0, **options), rngs=make_rngs(0))
    linear.lora_b[...] = jnp.asarray(random(2, 4))
    return linear


def test_lora_adds_the_scaled_low_rank_product():
    linear, x = lora_linear(), jnp.asarray(random(3, 8))
    update = np.asarray(linear.lora_a[...]) @ np.asarray(linear.lora_b[...]) * 3.0
    np.testing.assert_allclose(linear(x), np.asarray(x) @ (np.asarray(linear.kernel[...]) + update), rtol=1e-4)


def test_merging_lora_changes_nothing_and_can_be_undone():
    linear, x = lora_linear(), jnp.asarray(random(3, 8))
    before, kernel = linear(x), jnp.array(linear.kernel[...])
    merge_lora(linear)
    merged = jnp.array(linear.kernel[...])
    assert not np.allclose(merged, kernel)
    np.testing.assert_allclose(linear(x), before, rtol=1e-4, atol=1e-6)
    merge_lora(linear)
    np.testing.assert_array_equal(linear.kernel[...], merged)
    merge_lora(linear, undo=True)
    np.testing.assert_allclose(linear.kernel[...], kernel, atol=1e-6)
    np.testing.assert_allclose(linear(x), before, rtol=1e-4, atol=1e-6)


def test_lora_dropout_needs_keys_and_is_unbiased():
    linear, x = lora_linear(dropout=0.5), jnp.asarray(random(3, 8))
    without = linear(x)
    np.testing.assert_array_equal(without, linear(x))
    keys = jax.random.split(jax.random.key(0), 4000)
    samples = jax.vmap(lambda key: linear(x, jax.random.split(key, 3)))(keys)
    assert float(samples.std(0).min()) > 0
    error = 5 * samples.std(0) / np.sqrt(len(keys))
    assert bool((jnp.abs(samples.mean(0) - without) < error).all())
    plain = lora_linear()
    np.testing.assert_array_equal(plain(x), plain(x, keys[:3]))


def test_bad_lora_configs_say_why():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LoRAConfig(rank=0, alpha=1)
    with pytest.raises(ValueError, match="dropout"):
        LoRAConfig(rank=1, alpha=1, dropout=1.0)
