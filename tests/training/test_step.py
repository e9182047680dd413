"""The training step: gradient accumulation and rematerialization change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from nextgpt_jax.data.examples import BatchSpec
from nextgpt_jax.training.stages import STAGES
from nextgpt_jax.training.step import make_step
from tests import tiny
from tests.training.running import first_batches, load, run_steps


def test_accumulated_gradients_equal_the_whole_batch(tiny_root):
    """Dropout included, which depends on the row; and slots for media that no example has."""
    config = tiny.experiment(tiny_root, "stage3", tiny.PICTURES)
    config.model.lora_dropout = 0.3
    loaded = load(config.model)
    (narrow,) = first_batches(config, loaded, 1)
    (wide,) = first_batches(config, loaded, 1, BatchSpec({"image": 2, "audio": 1}, {"image": 3}))
    assert [*wide["media"]] == ["audio", "image"] and [*narrow["media"]] == ["image"]
    graphdef, trainable, frozen = nnx.split(loaded.model, STAGES["stage3"].trainable, ...)
    trainable = jax.tree.map(lambda x: x + 0.01, trainable)  # lora_b is initialized to 0, where lora_a has no gradient
    # An optimizer that changes nothing and keeps the gradients as its state.
    tx = optax.GradientTransformation(
        init=functools.partial(jax.tree.map, jnp.zeros_like),
        update=lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    results = []
    for config.optim.grad_accum_steps, batch in ((1, narrow), (4, wide)):
        update = jax.jit(make_step(graphdef, tx, config))
        _, gradients, metrics = update(trainable, tx.init(trainable), frozen, batch, 1)
        results.append((gradients, metrics))
    (whole, metrics), (accumulated, same) = results
    for name in metrics:
        np.testing.assert_allclose(metrics[name], same[name], rtol=2e-5, err_msg=name)
    for (path, a), (_, b) in zip(nnx.to_flat_state(whole), nnx.to_flat_state(accumulated), strict=True):
        a, b = np.asarray(a[...]), np.asarray(b[...])
        assert a.any(), path
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max(), err_msg=str(path))


def test_remat_changes_nothing(tiny_root):
    config, found = tiny.experiment(tiny_root, "stage3", tiny.PICTURES), []
    loaded = load(config.model)
    made = first_batches(config, loaded, 1)
    for config.train.remat in ("none", "dots", "full"):
        _, (metrics,) = run_steps(config, loaded, made)
        found.append([metrics["loss"], metrics["grad_norm"]])
    np.testing.assert_allclose(found[1:], found[:1] * 2, rtol=1e-6)
