"""A tiny random model as a training run leaves it."""

import jax.numpy as jnp
import pytest
from flax import nnx

import nextgpt_jax as ng
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.weights.load import load_system
from nextgpt_jax.weights.run_checkpoints import Workdir
from tests import tiny


@pytest.fixture(scope="session")
def workdir(tiny_root, tmp_path_factory):
    config = tiny.experiment(tiny_root, "stage3")
    system = load_system(config.model, seed=1)
    folder = tmp_path_factory.mktemp("run") / "stage3"
    with Workdir(folder) as run:
        delta = nnx.state(system.model, is_trainable)
        run.init_or_validate("stage3", delta, "", system.model.config.signals)
        run.write_config(config)
        run.save(1, delta, {"step": jnp.zeros(())}, {"examples": 4}, losses={"loss": 1.0})
    return folder


@pytest.fixture(scope="session")
def model(workdir):
    return ng.NExTGPT.from_pretrained(workdir)
