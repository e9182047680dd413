"""AdamW with warm-up and decay, clipping by global norm, and a learning-rate factor for each trained part."""

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


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a stage's trainable state."""
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip_norm),
        optax.adamw(learning_rate(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay),
        _scale_by_group(config),
    )


def _scale_by_group(config: OptimConfig) -> optax.GradientTransformation:
    def scale(updates, params=None):
        def scaled(path, leaf):
            return leaf.replace(leaf[...] * getattr(config.lr_multipliers, param_group(path)))

        return nnx.from_flat_state([(path, scaled(path, leaf)) for path, leaf in nnx.to_flat_state(updates)])

    return optax.stateless(scale)
