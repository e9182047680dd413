"""Decoding loops on the device, over a preallocated key/value cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextgpt_jax.generation.state import AnyArray, DecodeOutput, DecodeState, SamplingParams, StaticDecodeConfig
from nextgpt_jax.generation.step import Model, decode_step, group_step, prefill, starts_group


def generate(
    model: Model,
    embeddings: Float[Array, "b p d"],
    lengths: Int[AnyArray, " b"],
    params: SamplingParams,
    config: StaticDecodeConfig,
) -> DecodeOutput:
    """Complete responses to a batch of prompts. Pure: compile it with `config` static.

    Rows may differ in prompt length, options and seed; the tokens of a row do not depend on the other rows.

    Args:
      embeddings: prompts with their media in place, padded on the right.
      lengths: prompt lengths, at least 1.
    """
    return decode(model, prefill(model, embeddings, lengths, params, config), config).output()


def decode(
    model: Model, state: DecodeState, config: StaticDecodeConfig, max_steps: Int[Array, ""] | int | None = None
) -> DecodeState:
    """Advances the batch until all rows are done or, if given, by at most `max_steps` steps.

    A step feeds each row one token or one signal group. `max_steps` may be traced.
    """
    limit = jnp.iinfo(jnp.int32).max if max_steps is None else max_steps

    def running(carry):
        step, state = carry
        return (step < limit) & ~state.done.all()

    def starting(carry):
        return starts_group(carry[1], config).any()

    def repeat(step_function, condition, carry):
        return jax.lax.while_loop(condition, lambda c: (c[0] + 1, step_function(model, c[1], config)), carry)

    def round_(carry):
        # Two loops, not a conditional in one: XLA copies the cache at a conditional.
        carry = repeat(decode_step, lambda c: running(c) & ~starting(c), carry)
        if not config.signal_groups:
            return carry
        return repeat(group_step, lambda c: running(c) & starting(c), carry)

    return jax.lax.while_loop(running, round_, (jnp.int32(0), state))[1]
