"""Training runs of the tiny system: what changes, what does not, resuming, chaining stages."""

import functools
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.training import loop
from nextgpt_jax.training import step as steps
from nextgpt_jax.training.loop import row_encoder, train
from nextgpt_jax.training.optimizer import learning_rate, make_optimizer
from nextgpt_jax.training.stages import DELTA, STAGES, param_group
from nextgpt_jax.training.step import make_step
from nextgpt_jax.weights.load import load_system
from nextgpt_jax.weights.run_checkpoints import Workdir
from tests import tiny

load = functools.partial(load_system, decoder_parts=("text_encoder",))


def first_batches(config, system, n):
    stage = STAGES[config.train.stage]
    path = config.data.instructions if stage.samples == "instructions" else config.data.captions
    samples = read_samples(stage.samples, path, config.data.media_root)
    data = batches(samples, row_encoder(config, system, samples), config.data, 0)
    return [next(data) for _ in range(n)]


def steps_of(config, system, batches):
    """Trains on the batches; returns the model and the metrics of each step."""
    stage = STAGES[config.train.stage]
    graphdef, trainable, frozen = nnx.split(system.model, stage.trainable, ...)
    tx = make_optimizer(config.optim, 100)
    opt, update, history = tx.init(trainable), jax.jit(make_step(graphdef, tx, config)), []
    for i, batch in enumerate(batches):
        trainable, opt, metrics = update(trainable, opt, frozen, batch, i)
        history.append(jax.device_get(metrics))
    return nnx.merge(graphdef, trainable, frozen), history


EXPECTED = {
    "stage1": {"input_proj", "signal"},
    "stage2": {"output_proj", "signal"},
    "stage3": {"input_proj", "output_proj", "signal", "lora"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_stage_s_leaves_change_and_the_loss_falls(tiny_root, stage):
    config = tiny.experiment(tiny_root, stage)
    config.optim.warmup_ratio = 0.0
    system = load(config.model)
    before = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(system.model))}
    model, history = steps_of(config, system, first_batches(config, system, 3) * 16)
    after = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert before.keys() == after.keys()
    changed = set()
    for path, old in before.items():
        trained = param_group(path) in EXPECTED[stage] if path[0] != "encoder" and path[0] != "decoders" else False
        if not trained:
            assert old.tobytes() == after[path].tobytes(), path  # bit for bit
        elif not np.array_equal(old, after[path]):
            changed.add(param_group(path))
    assert changed == EXPECTED[stage]
    assert np.mean([m["loss"] for m in history[-3:]]) < 0.9 * np.mean([m["loss"] for m in history[:3]])


def test_accumulated_gradients_equal_the_whole_batch(tiny_root):
    """Dropout included, which depends on the row."""
    config = tiny.experiment(tiny_root, "stage3", tiny.PICTURES)
    config.model.lora_dropout = 0.3
    system = load(config.model)
    (batch,) = first_batches(config, system, 1)
    graphdef, trainable, frozen = nnx.split(system.model, STAGES["stage3"].trainable, ...)
    trainable = jax.tree.map(lambda x: x + 0.01, trainable)  # lora_b is initialized to 0, where lora_a has no gradient
    # An optimizer that changes nothing and keeps the gradients as its state.
    tx = optax.GradientTransformation(
        init=functools.partial(jax.tree.map, jnp.zeros_like),
        update=lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    results = []
    for config.optim.grad_accum_steps in (1, 4):
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


def test_rates_of_parts(tiny_root):
    config = tiny.experiment(tiny_root, "stage3", tiny.PICTURES)
    config.optim.warmup_ratio = 0.0
    config.optim.lr_multipliers.lora = 0.0
    config.optim.lr_multipliers.input_proj = 0.5
    updates = []
    for half in (True, False):
        if not half:
            config.optim.lr_multipliers.input_proj = 1.0
        system = load(config.model)
        before = nnx.state(system.model, DELTA)
        before = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(before)}
        model, _ = steps_of(config, system, first_batches(config, system, 2)[:1])
        moved = {p: np.asarray(leaf[...]) - before[p] for p, leaf in nnx.to_flat_state(nnx.state(model, DELTA))}
        assert all(np.array_equal(m, np.zeros_like(m)) == (param_group(p) == "lora") for p, m in moved.items())
        updates.append(moved["input_proj", "layers", 0, "kernel"])
    np.testing.assert_allclose(2 * updates[0], updates[1], rtol=1e-3, atol=1e-6)


def test_learning_rate_warms_up_and_decays(tiny_root):
    config = tiny.experiment(tiny_root, "stage1").optim
    rate = learning_rate(config, 100)
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(55), rate(100)], np.array([0, 0.5, 1, 0.5, 0]) * config.lr
    )


def final_delta(config, workdir):
    system = load(config.model)
    return Workdir(workdir).restore_delta(nnx.state(system.model, DELTA))


def test_resuming_equals_a_straight_run(tiny_root, tmp_path, capsys):
    config = tiny.experiment(tiny_root, "stage3", tiny.PICTURES)
    train(config, str(tmp_path / "straight"))

    class Interrupted(Exception):
        pass

    original = Workdir.save

    def save_then_stop(self, step, *args, **options):
        original(self, step, *args, **options)
        raise Interrupted

    Workdir.save = save_then_stop
    try:
        with pytest.raises(Interrupted):
            train(config, str(tmp_path / "resumed"))
    finally:
        Workdir.save = original
    capsys.readouterr()
    train(config, str(tmp_path / "resumed"))
    assert "resuming" in capsys.readouterr().out
    straight, step = final_delta(config, tmp_path / "straight")
    resumed, same = final_delta(config, tmp_path / "resumed")
    assert step == same == 4
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_stages_chain_and_say_what_they_took(tiny_root, tmp_path, capsys):
    config = tiny.experiment(tiny_root, "stage1")
    train(config, str(tmp_path / "one"))
    first, _ = final_delta(config, tmp_path / "one")
    config = tiny.experiment(tiny_root, "stage2")
    metrics = train(config, str(tmp_path / "two"), init_from=str(tmp_path / "one"))
    output = capsys.readouterr().out
    assert "took" in output and "input_proj" in output and "running on" in output
    assert {"loss", "loss_language", "loss_alignment", "token_accuracy", "tokens_per_second", "grad_norm",
            "learning_rate", "tokens", "step_seconds", "examples_per_second", "tokens_per_second_per_device",
            "model_tflops_per_device"} == metrics.keys()  # fmt: skip
    second, _ = final_delta(config, tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, first["input_proj"], second["input_proj"])
    assert list((tmp_path / "two").glob("events.out.tfevents.*"))


def test_workdirs_of_another_stage_or_model_are_refused(tiny_root, tmp_path):
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.train.steps = 1
    train(config, str(tmp_path / "run"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="holds a run of stage1, not stage2"):
        train(tiny.experiment(tiny_root, "stage2", tiny.PICTURES), str(tmp_path / "run"))
    other = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    other.model.lora_rank = 3
    with pytest.raises(UserError, match=r"belongs to another model: .*lora_a"):
        train(other, str(tmp_path / "run"))
    with pytest.raises(UserError, match="holds no training run"):
        train(config, str(tmp_path / "new"), init_from=str(tmp_path / "nothing"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        train(config, str(tmp_path / "full"))
    (tmp_path / "full" / "thesis.tex").unlink()
    (tmp_path / "full").rmdir()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("data.captions", "nowhere.json", "no such file: nowhere.json"),
        ("model.llm", "nowhere", "model.llm: no such folder"),
        ("train.stage", "stage9", "not one of stage1"),
        ("optim.grad_accum_steps", 3, "does not divide"),
        ("data.batch_size", 0, "data.batch_size should be at least 1"),
        ("model.output_projector", "mamba", "'mamba' is not one of"),
        ("model.dtype", "int8", "model.dtype"),
        ("model.input_projector", "tree", "config.model: input projection 'tree'"),
        ("model.lora_targets", ("q",), "config.model: LoRA targets"),
        ("train.steps", -5, "should not be negative"),
        ("data.captions", ".", "cannot be read"),
        ("train.seed", -1, "train.seed should be at least 0 and below"),
        ("train.seed", 2**31, "train.seed should be at least 0 and below"),
        ("train.remat", "half", "train.remat: 'half' is not one of none, dots, full, offload"),
        ("train.remat", "offload", "train.remat=offload moves activations to the host's memory"),
        ("model.quantize", "int3", "model.quantize: 'int3' is not one of int8, nf4"),
    ],
)
def test_bad_configs_leave_nothing(tiny_root, tmp_path, field, value, message):
    config = tiny.experiment(tiny_root, "stage1")
    group, name = field.split(".")
    setattr(getattr(config, group), name, value)
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_remat_changes_nothing(tiny_root):
    config, found = tiny.experiment(tiny_root, "stage3", tiny.PICTURES), []
    for config.train.remat in ("none", "dots", "full"):
        system = load(config.model)
        _, (metrics,) = steps_of(config, system, first_batches(config, system, 1))
        found.append([metrics["loss"], metrics["grad_norm"]])
    np.testing.assert_allclose(found[1:], found[:1] * 2, rtol=1e-6)


def test_an_unreadable_image_is_named(tiny_root, tmp_path):
    (tmp_path / "hub").symlink_to(tiny_root / "hub")
    tiny.write_data(tmp_path / "data")
    (tmp_path / "data" / "images" / "3.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"3\.png is not an image"):
        train(tiny.experiment(tmp_path, "stage1"), str(tmp_path / "run"))


def test_a_missing_medium_is_named_before_anything_is_written(tiny_root, tmp_path):
    """Also that of the last sample."""
    (tmp_path / "hub").symlink_to(tiny_root / "hub")
    tiny.write_data(tmp_path / "data")
    (tmp_path / "data" / "audios" / "11.wav").unlink()
    for stage in ("stage1", "stage3"):
        with pytest.raises(UserError, match=r"sample 11: no such audio: .*11\.wav"):
            train(tiny.experiment(tmp_path, stage), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_never_saved(tiny_root, tmp_path):
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.optim.lr, config.optim.grad_clip_norm, config.train.log_every, config.train.save_every = 1e38, 1e38, 100, 2
    config.train.steps, config.optim.warmup_ratio = 6, 0.0
    with pytest.raises(UserError, match="not finite"):
        train(config, str(tmp_path / "run"))
    step = Workdir(tmp_path / "run").latest()
    if step is not None:
        delta, _ = final_delta(config, tmp_path / "run")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(delta))


def test_a_run_over_another_base_is_refused(tiny_root, tmp_path):
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.train.steps = 1
    train(config, str(tmp_path / "run"))
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"base_delta": ""', '"base_delta": "/some/delta"'))
    for workdir, init_from in ((tmp_path / "run", ""), (tmp_path / "next", tmp_path / "run")):
        with pytest.raises(UserError, match="trained on model.delta='/some/delta'"):
            train(config, str(workdir), init_from=str(init_from) if init_from else "")
    assert not (tmp_path / "next").exists()


def test_bfloat16(tiny_root, tmp_path):
    config = tiny.experiment(tiny_root, "stage3")
    config.model.dtype, config.optim.grad_accum_steps, config.train.remat = "bfloat16", 2, "full"
    assert np.isfinite(train(config, str(tmp_path / "run"))["loss"])
    system = load(config.model)
    assert system.model.llm.embed_tokens.embedding.dtype == "bfloat16"
    assert system.model.signal_embed.dtype == "float32"


def test_a_file_is_no_workdir(tiny_root, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="is a file"):
        train(tiny.experiment(tiny_root, "stage1"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


def test_the_rate_counts_the_work_of_the_steps_and_no_saving(tiny_root, tmp_path, monkeypatch):
    """On a clock that only steps, which run asynchronously, and checkpoints move."""
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
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Workdir, "save", lambda *args, **options: spend(1000.0, save(*args, **options)))
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.train.save_every = 1
    samples = read_samples("describe", config.data.captions, config.data.media_root)
    data = batches(samples, row_encoder(config, load(config.model), samples), config.data, config.train.seed)
    tokens = [int(next(data)["lengths"].sum()) for _ in range(4)]
    metrics = train(config, str(tmp_path / "run"))
    assert metrics["tokens_per_second"] == pytest.approx((tokens[2] + tokens[3]) / 20.0)
