"""The learning-rate schedule, and factors on it for each trained part."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nextgpt_jax.config import OptimConfig
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.training.optimizer import average_parameters, join_average, learning_rate, split_average
from nextgpt_jax.training.stages import param_group
from tests import tiny
from tests.training.running import first_batches, load, run_steps


def test_the_learning_rate_warms_up_and_decays(tiny_root):
    config = tiny.experiment(tiny_root, "stage1").optim
    rate = learning_rate(config, 100)
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(55), rate(100)], np.array([0, 0.5, 1, 0.5, 0]) * config.lr
    )


@pytest.mark.parametrize("schedule, middle, last", [("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)])
def test_other_schedules_start_with_the_same_warm_up(schedule, middle, last):
    config = OptimConfig(lr=2.0, schedule=schedule)
    rate = learning_rate(config, 100)
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(55), rate(100)], [0, 1, 2, 2 * middle, 2 * last], atol=1e-6
    )


def test_the_average_follows_the_parameters():
    """The first ones faster, so that a short run does not end near where it began."""
    tx = optax.chain(optax.sgd(1.0), average_parameters(0.5))
    params = {"w": jnp.float32([3.0, -1.0])}
    opt, expected = tx.init(params), np.float32([3.0, -1.0])
    for n in range(12):
        updates, opt = tx.update({"w": jnp.float32([n, 1.0])}, opt, params)
        params = optax.apply_updates(params, updates)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * np.asarray(params["w"])
    without, average = split_average(opt)
    assert int(average.count) == 12 and join_average(without, average) == opt
    np.testing.assert_allclose(average.params["w"], expected, rtol=1e-6)
    np.testing.assert_array_equal(params["w"], [3.0 - 66, -13.0])
    assert split_average(without) == (without, None) and join_average(without, None) is without


def test_learning_rate_multipliers(tiny_root):
    config = tiny.experiment(tiny_root, "stage3", tiny.PICTURES)
    config.optim.warmup_ratio = 0.0
    config.optim.lr_multipliers.lora = 0.0
    config.optim.lr_multipliers.input_proj = 0.5
    updates = []
    for half in (True, False):
        if not half:
            config.optim.lr_multipliers.input_proj = 1.0
        loaded = load(config.model)
        before = nnx.state(loaded.model, is_trainable)
        before = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(before)}
        model, _ = run_steps(config, loaded, first_batches(config, loaded, 2)[:1])
        moved = {p: np.asarray(leaf[...]) - before[p] for p, leaf in nnx.to_flat_state(nnx.state(model, is_trainable))}
        assert all(np.array_equal(m, np.zeros_like(m)) == (param_group(p) == "lora") for p, m in moved.items())
        updates.append(moved["input_proj", "layers", 0, "kernel"])
    np.testing.assert_allclose(2 * updates[0], updates[1], rtol=1e-3, atol=1e-6)
