"""The training step: a pure function over split state, and its jitted form.

Gradients and optimizer state exist for the stage's trainable leaves only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax import compiler
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.modalities import output_modalities
from nextgpt_jax.sharding import constrain, replicated
from nextgpt_jax.training import losses
from nextgpt_jax.training.stages import STAGES


def alignment_weights(config: ExperimentConfig) -> dict[str, float]:
    """The factors on the alignment losses of a stage, by output modality."""
    stage = STAGES[config.train.stage]
    return {
        name: config.train.alignment_weight * stage.alignment_weights.get(name, 1.0) for name in output_modalities()
    }


def make_step(graphdef, tx: optax.GradientTransformation, config: ExperimentConfig):
    """The step (trainable, opt, frozen, batch, number) -> (trainable, opt, metrics). Pure; the caller jits it.

    The batch is split into `optim.grad_accum_steps` micro-batches, whose gradients add up to exactly the whole batch's:
    sums are divided by the whole batch's target counts. Dropout depends on the seed, the step's number and the
    example's index only, so neither accumulation nor the mesh changes it.
    """
    micro_batches = config.optim.grad_accum_steps
    seed = config.train.seed
    weights = alignment_weights(config)

    def micro(x):
        """[B, ...] to [micro-batches, B / micro-batches, ...]; every device keeps its examples."""
        x = x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, "batch")

    def step(trainable, opt, frozen, batch, number):
        denominators = losses.target_counts(batch)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), len(batch["tokens"]))

        def gradient(batch, keys):
            def loss(trainable):
                return losses.loss(
                    nnx.merge(graphdef, trainable, frozen),
                    batch,
                    denominators,
                    alignment_weights=weights,
                    dropout_keys=keys,
                    remat=config.train.remat,
                )

            (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
            return grads, metrics

        def add(total, batch_and_keys):
            return jax.tree.map(jnp.add, total, gradient(*batch_and_keys)), None

        if micro_batches == 1:
            grads, metrics = gradient(batch, keys)
        else:
            split = jax.tree.map(micro, (batch, keys))
            gradient = jax.jit(gradient)  # traced once, for its shapes and for the loop
            shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], split))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (grads, metrics), _ = jax.lax.scan(add, zeros, split)
        updates, opt = tx.update(grads, opt, trainable)
        metrics |= {"grad_norm": optax.tree.norm(grads), "tokens": batch["lengths"].sum()}
        inputs = [entry["positions"] < batch["tokens"].shape[1] for entry in batch["media"].values()]
        metrics["media"] = sum((valid.sum() for valid in inputs), jnp.zeros((), jnp.int32))
        metrics |= {f"groups_{name}": denominators[name] for name in batch["signals"]}
        return optax.apply_updates(trainable, updates), opt, metrics

    return step


def jit_step(
    graphdef, tx: optax.GradientTransformation, config: ExperimentConfig, trainable: nnx.State, opt: Any, mesh: Mesh
) -> Callable:
    """The jitted form of `make_step`, to be called under jax.set_mesh(mesh).

    Trainable and optimizer state (given abstract or real) are donated, and the results keep their shardings.
    """
    shardings = jax.tree.map(lambda x: x.sharding, (trainable, opt))
    step = make_step(graphdef, tx, config)
    return compiler.jit(step, donate_argnums=(0, 1), out_shardings=(*shardings, replicated(mesh)))


def optimizer_shardings(tx: optax.GradientTransformation, trainable: nnx.State, mesh: Mesh) -> Any:
    """Shardings of the optimizer state: moments like their parameters, counters replicated."""
    shardings = jax.tree.map(lambda x: x.sharding, trainable)
    abstract = jax.eval_shape(tx.init, trainable)
    return jax.tree.map(
        lambda x: shardings if isinstance(x, nnx.State) else replicated(mesh),
        abstract,
        is_leaf=lambda x: isinstance(x, nnx.State),
    )
