"""The sampling loop: one pure function for every latent diffusion model and every sampler."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextgpt_jax.models.diffusion.schedulers import SamplerState, SamplerTable, model_input, step


def sample(
    denoise: Callable[[Array, Array, Any], Array],
    plan: SamplerTable,
    state: SamplerState,
    context: Any,
    negative: Any,
    guidance: Float[Array, " b"],
    *,
    first: Int[Array, ""] | int = 0,
    last: Int[Array, ""] | int | None = None,
) -> SamplerState:
    """Runs the evaluations `first` to `last` (all by default) of `plan` from `state`, with classifier-free guidance.

    `denoise(x [2B, ...], timesteps [2B], context)` gives the model's output [2B, ...]: the first half of the batch is
    unconditional (`negative`), the second conditional (`context`). Both are pytrees of one structure whose leaves lead
    with B, or with 1 in `negative` for one that all rows share. `negative` None runs the model on `context` alone, once
    a row, without guidance. Rows don't depend on each other; samples are float32.

    Everything but shapes may be traced, `first` and `last` too: who wants to report progress, or to stop early, calls
    one compiled program for a few evaluations at a time.
    """
    guided = negative is not None
    shape = state.sample.shape
    if guided:
        context = jax.tree.map(
            lambda n, c: jnp.concatenate([jnp.broadcast_to(n, c.shape).astype(c.dtype), c]), negative, context
        )
    weight = jnp.asarray(guidance, jnp.float32).reshape(-1, *(1,) * (len(shape) - 1))

    def evaluate(i, state):
        x = model_input(plan, i, state)
        x = jnp.concatenate([x, x]) if guided else x
        output = denoise(x, jnp.broadcast_to(plan.row(i).timestep, x.shape[:1]), context).astype(jnp.float32)
        if guided:
            unconditional, conditional = jnp.split(output, 2)
            output = unconditional + weight * (conditional - unconditional)
        return step(plan, i, state, output)

    return jax.lax.fori_loop(first, plan.count if last is None else last, evaluate, state)
