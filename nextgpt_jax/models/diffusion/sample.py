"""The sampling loop: one pure function for every latent diffusion model and every sampler."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nextgpt_jax.models.diffusion.schedulers import SamplerState, SamplerTable, model_input, step


def sample(
    denoise: Callable[[Array, Array, Any], Array],
    table: SamplerTable,
    state: SamplerState,
    context: Any,
    negative: Any,
    guidance_scale: Float[Array | np.ndarray, " b"],
    *,
    first: Int[Array, ""] | int = 0,
    last: Int[Array, ""] | int | None = None,
) -> SamplerState:
    """Runs evaluations `first` to `last` (all by default) of `table` from `state`, with classifier-free guidance.

    `denoise(x [2B, ...], timesteps [2B], context)` gives the model's output [2B, ...]: the first half of the batch is
    unconditional (`negative`), the second conditional (`context`). Both are pytrees of one structure whose leaves have
    a leading axis of B; `negative` may have 1, shared by all rows. `negative` None turns guidance off and evaluates the
    model on `context` alone, which halves the work. Rows don't depend on each other; samples are float32.

    Everything but shapes may be traced, `first` and `last` too: to report progress, or to stop early, call one compiled
    program for a few evaluations at a time.
    """
    guided = negative is not None
    shape = state.sample.shape
    if guided:
        context = jax.tree.map(
            lambda n, c: jnp.concatenate([jnp.broadcast_to(n, c.shape).astype(c.dtype), c]), negative, context
        )
    weight = jnp.asarray(guidance_scale, jnp.float32).reshape(-1, *(1,) * (len(shape) - 1))

    def evaluate(i, state):
        x = model_input(table, i, state)
        x = jnp.concatenate([x, x]) if guided else x
        output = denoise(x, jnp.broadcast_to(table.at(i).timestep, x.shape[:1]), context).astype(jnp.float32)
        if guided:
            unconditional, conditional = jnp.split(output, 2)
            output = unconditional + weight * (conditional - unconditional)
        return step(table, i, state, output)

    return jax.lax.fori_loop(first, table.num_evaluations if last is None else last, evaluate, state)
