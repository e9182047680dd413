"""AdamW with warm-up and decay, clipping by global norm, and a learning-rate factor for each trained part."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from nextgpt_jax.config import OptimConfig
from nextgpt_jax.training.stages import param_group

SCHEDULES = {  # (peak, steps) to the schedule after the warm-up
    "linear": lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
    "cosine": lambda lr, steps: optax.cosine_decay_schedule(lr, steps),
    "constant": lambda lr, steps: optax.constant_schedule(lr),
}


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from 0 to `lr` over `warmup_ratio * steps`, then `schedule` until `steps`."""
    warmup = round(config.warmup_ratio * steps)
    after = SCHEDULES[config.schedule](config.lr, max(1, steps - warmup))
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), after], [warmup]) if warmup else after


class Average(NamedTuple):
    """State of a moving average of parameters.

    Attributes:
      count: updates so far, int32 [].
      params: the average, like the parameters.
    """

    count: jax.Array
    params: Any


def make_optimizer(config: OptimConfig, steps: int, ema_decay: float = 0.0) -> optax.GradientTransformation:
    """The optimizer of a stage's trainable state. With a decay its state contains an Average (see `split_average`)."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.grad_clip_norm),
        optax.adamw(learning_rate(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay),
        _scale_by_group(config),
    )
    return optax.chain(optimizer, average_parameters(ema_decay)) if ema_decay else optimizer


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Follows the parameters by an exponential moving average. The last transformation of a chain: it needs the final
    updates, and changes none.

    Early averages are shorter, as in diffusers' EMAModel (without its first step, in which it copies) and in
    TensorFlow: the decay of update n, from 0, is at most (1 + n) / (10 + n), so that the first weights are forgotten.
    """

    def init(params):
        return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        rate = 1 - jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: old + (rate * (new - old)).astype(old.dtype), state.params, new)
        return updates, Average(state.count + 1, average)

    return optax.GradientTransformation(init, update)


def split_average(opt: Any) -> tuple[Any, Average | None]:
    """An optimizer's state without and with the moving average; None: there is none."""
    if isinstance(opt, tuple) and opt and isinstance(opt[-1], Average):
        return opt[0], opt[-1]
    return opt, None


def join_average(opt: Any, average: Average | None) -> Any:
    """The inverse of `split_average`."""
    return opt if average is None else (opt, average)


def _scale_by_group(config: OptimConfig) -> optax.GradientTransformation:
    def scale(updates, params=None):
        def scaled(path, leaf):
            return leaf.replace(leaf[...] * getattr(config.lr_multipliers, param_group(path)))

        return nnx.from_flat_state([(path, scaled(path, leaf)) for path, leaf in nnx.to_flat_state(updates)])

    return optax.stateless(scale)
