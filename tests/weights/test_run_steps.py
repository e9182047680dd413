"""Which checkpoint is meant, which is the best, and which are kept."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.run_steps import best_step, parse_step


def delta(value: float) -> nnx.State:
    return nnx.State({"input_proj": {"kernel": nnx.Param(jnp.full(2, float(value)))}})


def save(path: pathlib.Path, losses: dict[int, dict[str, float]], keep: int = 1, keep_best: int = 0) -> None:
    """One process of a run, which saves some steps."""
    with Workdir(path, keep, keep_best) as run:
        run.init_or_validate("stage1", delta(0), "")
        for step, found in losses.items():
            run.save(step, delta(step), {"count": jnp.int32(step)}, {"examples": step}, losses=found)


@pytest.mark.parametrize("value, step", [("best", "best"), ("latest", "latest"), ("20", 20), (20, 20), ("007", 7)])
def test_steps(value, step):
    assert parse_step(value) == step


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=5) | st.sampled_from(["0", "-1", "1.0", "Best", "bset", "¹", "1_0", "9" * 30]) | st.booleans())
def test_other_steps_are_refused_in_one_line(value):
    try:
        found = parse_step(value, "--step")
    except UserError as error:
        assert str(error).startswith("--step: ") and len(str(error).splitlines()) <= 1 + len(str(value).splitlines())
    else:
        assert found in ("best", "latest") or (isinstance(found, int) and found > 0)


def test_the_best_is_that_with_the_lowest_loss_on_held_out_samples():
    training = {step: {"loss": loss} for step, loss in ((1, 0.5), (2, 0.1), (3, 0.1))}
    assert best_step({}) is None
    assert best_step(training) == 3
    assert best_step({**training, 4: {"loss": 9.0, "validation_loss": 2.0}}) == 4


def test_the_best_is_kept_by_runs_that_resume(tmp_path):
    held_out = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 1.5, 6: 5.0}
    for some in ((1, 2), (3, 4), (5, 6)):
        losses = {step: {"loss": 9.0 - step, "validation_loss": held_out[step]} for step in some}
        save(tmp_path / "run", losses, keep=1, keep_best=2)
    run = Workdir(tmp_path / "run")
    assert run.steps() == [6, 5, 2] and run.find_step("best") == 2 and run.find_step("latest") == 6
    found, step = run.restore_delta(delta(0), "best")
    assert step == 2 and float(found["input_proj"]["kernel"][0]) == 2.0
    assert run.restore_delta(delta(0), 5)[1] == 5


def test_steps_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="holds no training run"):
        Workdir(tmp_path / "run").find_step("best")
    save(tmp_path / "run", {})
    with pytest.raises(UserError, match="has no complete checkpoint yet"):
        Workdir(tmp_path / "run").find_step("best")
    save(tmp_path / "run", {10: {"loss": 1.0}, 20: {"loss": 2.0}}, keep=3)
    run = Workdir(tmp_path / "run")
    with pytest.raises(UserError, match="has no checkpoint of step 15: there are 10, 20"):
        run.restore_delta(delta(0), 15)
    file = run.path / "10" / "data" / "metadata"
    for content in ('{"examples": 1}', '{"losses": {"loss": NaN}}', '{"losses": {"loss": "x"}}', '{"losses": []}', "["):
        file.write_text(content)
        assert list(run.losses()) == [20]
    (run.path / "20" / "data" / "metadata").write_text(json.dumps({"examples": 20}))  # as earlier versions wrote it
    with pytest.raises(UserError, match=r"no checkpoint with a recorded loss.* \(there are 10, 20\)"):
        run.find_step("best")
    (run.path / "20" / "delta" / "_METADATA").unlink()
    with pytest.raises(UserError, match=r"is damaged \(step 20: .*_METADATA is missing\).*there are 10, 20"):
        run.restore_delta(delta(0), 20)


def test_the_moving_average_of_the_weights(tmp_path):
    with Workdir(tmp_path / "run", keep=3) as run:
        run.init_or_validate("stage1", delta(0), "")
        for step, data in ((1, {}), (2, {"ema_updates": 2}), (3, {"ema_updates": 3})):
            average = delta(step + 0.5) if data else None
            opt = {"count": jnp.int32(step)}
            run.save(step, delta(step), opt, {"examples": step} | data, losses={"loss": 1.0}, average=average)

    def value(step, ema):
        found, number = run.restore_delta(delta(0), step, ema)
        assert number == (3 if step == "latest" else step)
        return float(found["input_proj"]["kernel"][0])

    assert [value(step, ema) for step in (1, 2, "latest") for ema in (None, False)] == [1.0, 1.0, 2.5, 2.0, 3.5, 3.0]
    assert run.resume_step() == 3 and float(run.restore_average(3, delta(0))["input_proj"]["kernel"][0]) == 3.5
    with pytest.raises(UserError, match=r"no moving average of the weights at step 1 \(train.ema_decay was 0\)"):
        value(1, True)
    shutil.rmtree(run.path / "3" / "ema")
    with pytest.raises(UserError, match="step 3: ema/ is missing"):
        value(3, None)
    assert value(3, False) == 3.0 and run.restore_delta(delta(0))[1] == 2
    assert run.resume_step() == 2  # and not without the average
