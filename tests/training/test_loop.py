"""Training runs of the tiny system: resuming, chaining stages, workdirs, unreadable media."""

import json
import re
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.training import report
from nextgpt_jax.training.loop import train
from nextgpt_jax.weights.run_checkpoints import Workdir
from tests import tiny
from tests.training.running import load


def final_delta(config, workdir, **options):
    loaded = load(config.model)
    return Workdir(workdir).restore_delta(nnx.state(loaded.model, is_trainable), **options)


def test_resuming_equals_a_straight_run(tiny_root, tmp_path, capsys):
    """With the moving average of the weights."""
    config = tiny.experiment(tiny_root, "stage3", tiny.PICTURES)
    config.train.ema_decay = 0.9
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
    like = nnx.state(load(config.model).model, is_trainable)
    found = {}
    for ema in (None, False):
        found[ema], step = Workdir(tmp_path / "straight").restore_delta(like, ema=ema)
        resumed, same = Workdir(tmp_path / "resumed").restore_delta(like, ema=ema)
        assert step == same == 4
        jax.tree.map(np.testing.assert_array_equal, found[ema], resumed)
    averaged, raw = (np.asarray(found[ema]["signal_embed"][...]) for ema in (None, False))
    assert 0 < np.abs(averaged - raw).max() < 0.1


def test_stages_chain_and_print_the_loaded_parts(tiny_root, tmp_path, capsys):
    config = tiny.experiment(tiny_root, "stage1")
    train(config, str(tmp_path / "one"))
    first, _ = final_delta(config, tmp_path / "one")
    config = tiny.experiment(tiny_root, "stage2")
    with pytest.raises(UserError, match="one has no checkpoint of step 3: there are 2, 4"):
        train(config, str(tmp_path / "two"), init_from=str(tmp_path / "one"), init_step=3)
    metrics = train(config, str(tmp_path / "two"), init_from=str(tmp_path / "one"), init_step="latest")
    output = capsys.readouterr().out
    layout = r"4 examples of 96 tokens, (?:in|out)puts: audio 1 image 1 video 1 \(.* MB\)"
    assert len(re.findall(rf"step 1: compiled for {layout} in [0-9.]+ s\n", output)) == 2  # runs
    assert re.search(r"step 2/4 .* waiting for data \d+%, padding \d+%  .*ETA 00:\d\d\n", output)
    assert re.search(r"parameters: .*output_proj \([0-9,]+\).*; [0-9,]+ of [0-9,]+ \([0-9.]+%\)\n", output)
    assert "loaded" in output and "input_proj" in output and "running on" in output
    assert {"loss", "loss_language", "loss_alignment", "token_accuracy", "tokens_per_second", "grad_norm",
            "loss_alignment_image", "loss_alignment_video", "loss_alignment_audio",
            "media", "media_per_second", "padding_share", "data_wait_share",
            "learning_rate", "tokens", "step_seconds", "examples_per_second", "tokens_per_second_per_device",
            "model_tflops_per_device"} == metrics.keys()  # fmt: skip
    second, _ = final_delta(config, tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, first["input_proj"], second["input_proj"])
    assert list((tmp_path / "two").glob("events.out.tfevents.*"))
    written = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in written] == [2, 4] and written[-1] == {"step": 4, **metrics}


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


def test_settings_that_change_on_the_way_are_named(tiny_root, tmp_path, capsys):
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.train.steps, config.train.epochs = 0, 0.5
    train(config, str(tmp_path / "run"))
    assert "2 steps of 4, trainable parameters: input_proj (" in capsys.readouterr().out
    config.train.epochs, config.optim.lr, config.optim.schedule = 1.0, 1e-3, "cosine"
    config.data.batch_size = 6
    train(config, str(tmp_path / "run"))
    printed = capsys.readouterr().out
    for line in (
        "optim.lr: 0.003 -> 0.001",
        "optim.schedule: 'linear' -> 'cosine' (the learning rate follows",
        "data.batch_size: 4 -> 6 (this epoch may repeat or miss examples)",
    ):
        assert f"changed since then: {line}" in printed
    assert printed.count("changed since then") == 4
    assert [entry["step"] for entry in Workdir(tmp_path / "run").history] == [0, 2]
    config.train.seed = 1
    with pytest.raises(UserError, match="was trained with train.seed=0, and the order of the samples"):
        train(config, str(tmp_path / "run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_after_a_checkpoint(tiny_root, tmp_path, monkeypatch, number):
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.train.log_every = 1
    written, before = report.MetricsLog.write, signal.getsignal(number)

    def then_signal(self, step, metrics):
        written(self, step, metrics)
        if step == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(report.MetricsLog, "write", then_signal)
    with pytest.raises(SystemExit) as stopped:
        train(config, str(tmp_path / "run"))
    assert stopped.value.code == 128 + number and Workdir(tmp_path / "run").latest() == 2
    assert signal.getsignal(number) == before


def test_unreadable_media_are_skipped_and_written_down(tiny_root, tmp_path, capsys):
    """The same ones by a run that is killed and resumed; and the others are trained once an epoch."""
    (tmp_path / "hub").symlink_to(tiny_root / "hub")
    tiny.write_data(tmp_path / "pictures", kinds=tiny.PICTURES)
    for i in (3, 7):
        (tmp_path / "pictures" / "images" / f"{i}.png").write_text("not a picture")
    (tmp_path / "pictures" / "images" / "5.png").unlink()
    config = tiny.experiment(tmp_path, "stage1", tiny.PICTURES)
    config.data.max_skipped, config.train.steps, config.train.save_every = 0.3, 6, 1
    train(config, str(tmp_path / "straight"))
    printed = capsys.readouterr().out
    assert "captions.json, record 5: no such image" in printed and "11 samples" in printed
    straight = (tmp_path / "straight" / "skipped.jsonl").read_text()
    entries = [json.loads(line) for line in straight.splitlines()]
    assert entries[0]["step"] == 0 and entries[0]["record"] == "record 5"
    assert sorted(e["record"] for e in entries if 1 <= e["step"] <= 3) == ["record 3", "record 7"]
    assert all(e["source"].endswith("captions.json") and "is not an image" in e["reason"] for e in entries[1:])
    config.train.steps = 2
    train(config, str(tmp_path / "resumed"))
    config.train.steps = 6
    train(config, str(tmp_path / "resumed"))
    assert (tmp_path / "resumed" / "skipped.jsonl").read_text() == straight


def test_too_many_unreadable_media_of_a_source_stop_the_run(tiny_root, tmp_path, capsys):
    """After a checkpoint, so that nothing is lost. The other source of the mixture is whole."""
    (tmp_path / "hub").symlink_to(tiny_root / "hub")
    tiny.write_data(tmp_path / "pictures", kinds=tiny.PICTURES)
    for i in range(12):
        if i % 3 == 0:
            (tmp_path / "pictures" / "images" / f"{i}.png").write_text("not a picture")
    config = tiny.experiment(tmp_path, "stage1", tiny.PICTURES)
    config.data.max_skipped, config.train.save_every = 0.2, 100
    config.data.captions = f"{tiny_root / 'pictures' / 'captions.json'}:0.5,{config.data.captions}:0.5"
    config.train.steps, config.train.log_every = 8, 1
    with pytest.raises(UserError, match=r"\.png is not an image.* \(3 of its 12 records.*data.max_skipped allows 20"):
        train(config, str(tmp_path / "run"))
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    stopped = max(json.loads(line)["step"] for line in lines)
    assert Workdir(tmp_path / "run").latest() == (stopped - 1 or None)
    assert "sources: pictures-captions (12 samples, 50.0% of the examples, 1.33 epochs), " in capsys.readouterr().out
    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(written) == stopped - 1 > 0
    of_each = [[value for name, value in json.loads(line).items() if name.startswith("loss/")] for line in written]
    assert max(map(len, of_each)) == 2
    for losses, line in zip(of_each, written, strict=True):
        assert min(losses) - 1e-5 <= json.loads(line)["loss"] <= max(losses) + 1e-5


def test_nothing_readable_is_found_before_anything_is_written(tiny_root, tmp_path):
    (tmp_path / "hub").symlink_to(tiny_root / "hub")
    tiny.write_data(tmp_path / "pictures", kinds=tiny.PICTURES)
    for file in (tmp_path / "pictures" / "images").iterdir():
        file.write_text("not a picture")
    config = tiny.experiment(tmp_path, "stage1", tiny.PICTURES)
    config.data.captions = f"{tiny_root / 'pictures' / 'captions.json'},{config.data.captions}"  # the first one is
    with pytest.raises(UserError, match=r"0\.png is not an image"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_missing_medium_is_named_before_anything_is_written(tiny_root, tmp_path):
    """Also that of the last sample."""
    (tmp_path / "hub").symlink_to(tiny_root / "hub")
    tiny.write_data(tmp_path / "data")
    (tmp_path / "data" / "audios" / "11.wav").unlink()
    for stage in ("stage1", "stage3"):
        with pytest.raises(UserError, match=r"s.json, record 11: no such audio: .*11\.wav"):
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


@pytest.mark.parametrize("kinds", [tiny.PICTURES, pytest.param(tiny.KINDS, marks=pytest.mark.slow)])
def test_bfloat16(tiny_root, tmp_path, kinds):
    config = tiny.experiment(tiny_root, "stage3", kinds)
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
