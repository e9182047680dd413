"""Sampling of tokens from logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextgpt_jax.generation.sampling import sample_token


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.6), (4, 0.5)])
def test_sampling_matches_the_filtered_distribution(top_k, top_p):
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)
    temperature, n = 0.8, 20000
    keys = jax.random.split(jax.random.key(0), n)
    full = [jnp.full(n, v) for v in (temperature, top_k, top_p)]
    drawn = sample_token(jnp.tile(logits, (n, 1)), keys, *full)
    p = np.exp(logits / temperature)
    if top_k:
        p[top_k:] = 0
    p /= p.sum()
    p[np.cumsum(p) - p >= top_p] = 0
    p /= p.sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / n, p, atol=0.015)


def test_temperature_0_is_greedy_in_a_batch_with_sampled_rows():
    logits = jnp.array([[0.0, 1.0, 0.5]] * 2)
    keys = jax.random.split(jax.random.key(0), 2)
    token = sample_token(logits, keys, jnp.array([0.0, 1.0]), jnp.zeros(2, int), jnp.ones(2))
    assert token[0] == 1
