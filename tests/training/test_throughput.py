"""Throughput of a run."""

import time
import types

import jax
import numpy as np
import pytest

from nextgpt_jax.training import step as steps
from nextgpt_jax.training import throughput
from nextgpt_jax.training.loop import train
from nextgpt_jax.training.step import make_step
from nextgpt_jax.weights.run_checkpoints import Workdir
from tests import tiny
from tests.training.running import first_batches, load


def test_rates_count_the_time_of_steps_without_saving(tiny_root, tmp_path, monkeypatch):
    """The clock is advanced only by steps, which run asynchronously, and by checkpoints."""
    now = [0.0]

    def spend(seconds, value=None):
        time.sleep(0.1)
        now[0] += seconds
        return value

    def slow(*args):
        step = make_step(*args)

        def slow_step(*args):
            trainable, opt, metrics = step(*args)
            loss = metrics["loss"]
            metrics["loss"] = jax.pure_callback(lambda x: spend(10.0, np.asarray(x)), loss, loss)
            return trainable, opt, metrics

        return slow_step

    save = Workdir.save
    monkeypatch.setattr(steps, "make_step", slow)
    monkeypatch.setattr(throughput, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Workdir, "save", lambda *args, **options: spend(1000.0, save(*args, **options)))
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.train.save_every = 1
    tokens = [int(batch["lengths"].sum()) for batch in first_batches(config, load(config.model), 4)]
    metrics = train(config, str(tmp_path / "run"))
    assert metrics["tokens_per_second"] == pytest.approx((tokens[2] + tokens[3]) / 20.0)
    assert metrics["media_per_second"] == pytest.approx(8 / 20.0)
    assert metrics["padding_share"] == pytest.approx(1 - (tokens[2] + tokens[3]) / (8 * 96))
    assert metrics["data_wait_share"] == 0.0  # by this clock


def test_the_time_that_batches_are_waited_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    meter = throughput.ThroughputMeter(mesh, 2)
    update = jax.jit(lambda x: x + 1)

    def data():
        for _ in range(4):
            now[0] += 1.0
            yield {"tokens": np.zeros((2, 8))}

    for batch in meter.waiting(data()):
        assert meter.is_new(batch) == (now[0] == 1.0)
        meter.count(update, (batch["tokens"],), batch)
        now[0] += 3.0
    assert not meter.is_new(batch) and meter.is_new({"tokens": np.zeros((2, 4))})
    rates = meter.rates(tokens=48.0, media=4.0)
    assert (rates["data_wait_share"], rates["padding_share"], rates["media_per_second"]) == (0.25, 0.25, 0.25)
