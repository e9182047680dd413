"""AdamW, linear warm-up and decay, clipping by global norm, a multiple of the rate for each part."""

import jax
import optax

from nextgpt_jax.config import OptimConfig
from nextgpt_jax.training.stages import part_of


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from 0 to lr over the warm-up share of `steps`, then linear to 0 at the end."""
    warmup = max(1, round(config.warmup * steps))
    rise = optax.linear_schedule(0.0, config.lr, warmup)
    return optax.join_schedules([rise, optax.linear_schedule(config.lr, 0.0, max(1, steps - warmup))], [warmup])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of one stage over the trainable part of the state."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(learning_rate(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay),
        _scale_parts(config),
    )


def _scale_parts(config: OptimConfig) -> optax.GradientTransformation:
    def scale(updates, params=None):
        def one(path, update):
            keys = tuple(getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in path)
            names = tuple(k for k in keys if k != "value")
            return update * getattr(config.rates, part_of(names))

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(scale)
