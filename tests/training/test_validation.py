"""Losses on held-out samples."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.data import layouts
from nextgpt_jax.data.examples import BatchSpec
from nextgpt_jax.data.pipeline import ordered_batches
from nextgpt_jax.data.survey import survey
from nextgpt_jax.mesh import make_mesh
from nextgpt_jax.sharding import HostBatch
from nextgpt_jax.training import losses
from nextgpt_jax.training.loop import train
from nextgpt_jax.training.samples import make_example_builder, read_usable
from nextgpt_jax.training.stages import STAGES
from nextgpt_jax.training.step import alignment_weights
from nextgpt_jax.training.validation import Validation
from nextgpt_jax.weights.run_checkpoints import Workdir
from tests import tiny
from tests.training.running import load


def test_it_is_a_mean_over_all_targets_whatever_the_batches(tiny_root, tmp_path, monkeypatch):
    """And that of one batch of all samples: batches of five leave three places empty, and the first has no media."""
    monkeypatch.setattr(layouts, "MIN_SAVED_BYTES", 0)
    monkeypatch.setattr(layouts, "CHEAP_BYTES", 0)
    config = tiny.experiment(tiny_root, "stage3", tiny.PICTURES)
    talk = [{"from": "human", "value": "say yes"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "talk.json").write_text(json.dumps([{"conversations": talk}] * 5))
    config.data.instructions = f"{tmp_path / 'talk.json'},{config.data.instructions}"
    loaded = load(config.model)
    samples, spec, _ = read_usable(config, config.data.instructions)
    builder = make_example_builder(config, loaded, spec)
    graphdef, trainable, frozen = nnx.split(loaded.model, STAGES["stage3"].trainable, ...)
    mesh = make_mesh(config.mesh)
    examples = [builder(samples[i]) for i in range(len(samples))]
    batch = jax.tree.map(lambda *x: np.stack(x), *examples)
    weights = alignment_weights(config)
    expected = losses.loss(loaded.model, batch, losses.target_counts(batch), alignment_weights=weights)[1]
    config.data.batch_size = 5
    first, second, *_ = ordered_batches(samples, builder, config.data)
    assert not first["media"] and not first["signals"] and [*second["media"]] == [*second["signals"]] == ["image"]
    with jax.set_mesh(mesh):
        found = Validation(samples, builder, config, HostBatch(mesh, 5), graphdef, mesh)(trainable, frozen)
    names = ("loss", "loss_language", "loss_alignment_image", "token_accuracy")
    of_sources = ("loss/talk", "loss_language/talk", *(f"{name}/instructions" for name in names[:3]))
    assert found.keys() == {f"validation_{name}" for name in (*names, *of_sources)}
    shares = batch["loss_mask"][:5, 1:].sum() / batch["loss_mask"][:, 1:].sum()
    of_both = [found[f"validation_loss_language/{name}"] for name in ("talk", "instructions")]
    np.testing.assert_allclose(np.dot(of_both, [shares, 1 - shares]), expected["loss_language"], rtol=1e-5)
    assert abs(of_both[0] - of_both[1]) > 1e-3
    for name in (f"validation_{name}" for name in names):
        value = found[name]
        np.testing.assert_allclose(value, expected[name.removeprefix("validation_")], rtol=1e-5, err_msg=name)


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(tiny_root, tmp_path, monkeypatch, capsys):
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.data.validation = config.data.captions
    config.train.steps, config.train.save_every, config.train.eval_every = 4, 1, 2
    config.train.max_to_keep, config.train.keep_best = 1, 1
    values = iter([5.0, 2.0, 1.0, 3.0, 4.0])  # before the first step, and after each
    monkeypatch.setattr(Validation, "__call__", lambda *_: {"validation_loss": next(values)})
    train(config, str(tmp_path / "run"))
    assert Workdir(tmp_path / "run").steps() == [4, 2]
    assert "validation at step 2  loss 1.0000" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["validation_loss"] for line in written if "validation_loss" in line}
    assert found == {0: 5.0, 1: 2.0, 2: 1.0, 3: 3.0, 4: 4.0}


@pytest.mark.parametrize("one, other", [({"image": 2}, {"image": 1, "audio": 3}), ({}, {"video": 1})])
def test_a_batch_has_room_for_training_and_validation(one, other):
    spec = BatchSpec(one, {}).union(BatchSpec(other, one))
    assert spec.inputs == {name: max(one.get(name, 0), other.get(name, 0)) for name in one | other}
    assert spec.outputs == one and survey([], 1).inputs == {}
