"""Choosing a token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nextgpt_jax.generation.state import AnyArray


def sample_token(
    logits: Float[Array, "b v"],
    keys: Key[Array, " b"],
    temperature: Float[AnyArray, " b"],
    top_k: Int[AnyArray, " b"],
    top_p: Float[AnyArray, " b"],
) -> Int[Array, " b"]:
    """One token for each row: the most likely one at temperature 0, else a random one.

    Random tokens are drawn from the smallest set with at least `top_p` of the probability of the `top_k` most likely
    tokens (the order of transformers: temperature, top-k, top-p).

    Args:
      logits: -inf excludes a token.
      keys: one random key for each row.
      temperature, top_k, top_p: see `SamplingParams`.
    """
    greedy = jnp.argmax(logits, -1).astype(jnp.int32)

    def draw(_):
        scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
        ordered = jnp.sort(scaled, -1, descending=True)
        rank = jnp.arange(logits.shape[-1])
        k = jnp.where(top_k > 0, top_k, logits.shape[-1])[:, None]
        ordered = jnp.where(rank < k, ordered, -jnp.inf)
        probability = jax.nn.softmax(ordered, -1)
        before = jnp.cumsum(probability, -1) - probability
        inside = (rank < k) & (before < top_p[:, None]) | (rank == 0)
        threshold = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
        drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(scaled >= threshold, scaled, -jnp.inf))
        return jnp.where(temperature > 0, drawn.astype(jnp.int32), greedy)

    return jax.lax.cond((temperature > 0).any(), draw, lambda _: greedy, None)
