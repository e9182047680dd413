"""Training runs of the tiny system: resuming, chaining stages, workdirs, unreadable media."""

import jax
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.training.loop import train
from nextgpt_jax.weights.run_checkpoints import Workdir
from tests import tiny
from tests.training.running import load


def final_delta(config, workdir):
    loaded = load(config.model)
    return Workdir(workdir).restore_delta(nnx.state(loaded.model, is_trainable))


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


def test_stages_chain_and_print_the_loaded_parts(tiny_root, tmp_path, capsys):
    config = tiny.experiment(tiny_root, "stage1")
    train(config, str(tmp_path / "one"))
    first, _ = final_delta(config, tmp_path / "one")
    config = tiny.experiment(tiny_root, "stage2")
    metrics = train(config, str(tmp_path / "two"), init_from=str(tmp_path / "one"))
    output = capsys.readouterr().out
    assert "loaded" in output and "input_proj" in output and "running on" in output
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
        with pytest.raises(UserError, match=r"captions.json, record 11: no such audio: .*11\.wav"):
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
    loaded = load(config.model)
    assert loaded.model.llm.embed_tokens.embedding.dtype == "bfloat16"
    assert loaded.model.signal_embed.dtype == "float32"


def test_a_file_is_no_workdir(tiny_root, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="is a file"):
        train(tiny.experiment(tiny_root, "stage1"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"
