"""Stages: what each trains, on which examples."""

import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.training.stages import STAGES, param_group
from tests import tiny
from tests.training.running import first_batches, load, run_steps

EXPECTED = {
    "stage1": {"input_proj", "signal"},
    "stage2": {"output_proj", "signal"},
    "stage3": {"input_proj", "output_proj", "signal", "lora"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_stage_s_leaves_change_and_the_loss_falls(tiny_root, stage):
    config = tiny.experiment(tiny_root, stage)
    config.optim.warmup_ratio = 0.0
    loaded = load(config.model)
    before = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(loaded.model))}
    model, history = run_steps(config, loaded, first_batches(config, loaded, 3) * 16)
    after = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert before.keys() == after.keys()
    changed = set()
    for path, old in before.items():
        trained = param_group(path) in EXPECTED[stage] if path[0] != "encoders" and path[0] != "decoders" else False
        if not trained:
            assert old.tobytes() == after[path].tobytes(), path  # bit for bit
        elif not np.array_equal(old, after[path]):
            changed.add(param_group(path))
    assert changed == EXPECTED[stage]
    assert np.mean([m["loss"] for m in history[-3:]]) < 0.9 * np.mean([m["loss"] for m in history[:3]])
