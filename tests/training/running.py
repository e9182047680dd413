"""Steps of the tiny system outside the training loop."""

import functools

import jax
from flax import nnx

from nextgpt_jax.data.examples import BatchSpec
from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.training.optimizer import make_optimizer
from nextgpt_jax.training.samples import make_example_builder
from nextgpt_jax.training.stages import STAGES
from nextgpt_jax.training.step import make_step
from nextgpt_jax.weights.load import load_system

load = functools.partial(load_system, decoder_parts=("text_encoder",))


def first_batches(config, loaded, n, room=None):
    """The first `n` batches of a run, all with room for all media, or that of a BatchSpec."""
    stage = STAGES[config.train.stage]
    path = config.data.instructions if stage.task == "conversation" else config.data.captions
    samples = read_samples(stage.task, path, config.data.media_root)
    found = survey(samples, config.data.max_media)
    builder = make_example_builder(config, loaded, room or BatchSpec(found.inputs, found.outputs))
    return list(batches(samples, builder, config.data, config.train.seed, range(n)))


def run_steps(config, loaded, batches):
    """Trains on the batches; returns the model and the metrics of each step."""
    stage = STAGES[config.train.stage]
    graphdef, trainable, frozen = nnx.split(loaded.model, stage.trainable, ...)
    tx = make_optimizer(config.optim, 100)
    opt, update, history = tx.init(trainable), jax.jit(make_step(graphdef, tx, config)), []
    for i, batch in enumerate(batches):
        trainable, opt, metrics = update(trainable, opt, frozen, batch, i)
        history.append(jax.device_get(metrics))
    return nnx.merge(graphdef, trainable, frozen), history
