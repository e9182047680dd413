"""The sampling loop: one pure function for every latent diffusion model and every sampler."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nextgpt_jax.diffusion.schedulers import SamplingPlan, init_state, model_input, step


def sample(
    denoise: Callable[[Array, Array, Any], Array],
    plan: SamplingPlan,
    noise: Float[Array, "b ..."],
    context: Any,
    negative: Any,
    guidance: Float[Array, " b"],
    *,
    on_step: Callable[[int, int], None] | None = None,
) -> Float[Array, "b ..."]:
    """Runs `plan` from standard normal `noise` with classifier-free guidance; samples in float32.

    `denoise(x [2B, ...], timesteps [2B], context)` gives the model's output [2B, ...]: the first half of the batch is
    unconditional (`negative`), the second conditional (`context`). Both are pytrees of one structure whose leaves lead
    with B, or with 1 in `negative` for one that all rows share. `negative` None runs the model on `context` alone, once
    a row, without guidance. Rows don't depend on each other; everything but shapes is traced.

    `on_step(evaluations done, evaluations in all)` is called on the host while the loop runs, possibly out of order.
    """
    guided = negative is not None
    if guided:
        context = jax.tree.map(
            lambda n, c: jnp.concatenate([jnp.broadcast_to(n, c.shape).astype(c.dtype), c]), negative, context
        )
    weight = jnp.asarray(guidance, jnp.float32).reshape(-1, *(1,) * (noise.ndim - 1))

    def evaluate(i, state):
        x = model_input(plan, i, state)
        x = jnp.concatenate([x, x]) if guided else x
        output = denoise(x, jnp.broadcast_to(plan.row(i).timestep, x.shape[:1]), context).astype(jnp.float32)
        if guided:
            unconditional, conditional = jnp.split(output, 2)
            output = unconditional + weight * (conditional - unconditional)
        state = step(plan, i, state, output)
        if on_step is not None:
            jax.debug.callback(on_step, i + 1, plan.count)
        return state

    return jax.lax.fori_loop(0, plan.count, evaluate, init_state(plan, noise)).sample
