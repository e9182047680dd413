"""Workdirs: checkpoints of a run, and what identifies it."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import RELEASED
from nextgpt_jax.weights.run_checkpoints import Workdir


def delta(width: int = 3) -> nnx.State:
    return nnx.State({"input_proj": {"kernel": nnx.Param(jnp.arange(2.0 * width).reshape(2, width))}})


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    """A new run of stage1 without a base delta."""
    with Workdir(tmp_path / "run") as workdir:
        workdir.init_or_validate("stage1", delta(), "")
    return tmp_path / "run"


def test_the_newest_checkpoint_is_restored(run):
    opt = {"count": jnp.int32(7)}
    with Workdir(run / ".." / "run") as workdir:
        assert workdir.latest() is None
        for step in (1, 2):
            values = nnx.map(lambda _, leaf, step=step: leaf * step, delta())
            workdir.save(step, values, opt, {"examples": 4 * step}, losses={"loss": 1.0 / step})
    workdir = Workdir(run)
    assert workdir.latest() == 2
    found, step = workdir.restore_delta(delta())
    assert step == 2
    np.testing.assert_array_equal(found["input_proj"]["kernel"], 2 * delta()["input_proj"]["kernel"][...])
    found, opt, data = workdir.restore(1, delta(), {"count": jnp.int32(0)})
    np.testing.assert_array_equal(found["input_proj"]["kernel"], delta()["input_proj"]["kernel"])
    assert (int(opt["count"]), data) == (7, {"examples": 4})


def test_a_run_without_checkpoints(run, tmp_path):
    with pytest.raises(UserError, match="has no complete checkpoint yet"):
        Workdir(run).restore_delta(delta())
    with pytest.raises(UserError, match=r"holds no training run \(no run.json\)"):
        _ = Workdir(tmp_path / "nothing").base_delta


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("stage2", delta(), ""), "holds a run of stage1, not stage2"),
        (("stage1", delta(4), ""), r"input_proj.kernel is \[2, 3\] there and \[2, 4\] in this config"),
        (("stage1", delta(), "/other"), "was trained on model.delta='', this config has '/other'"),
        (("stage1", delta(), "", RELEASED[:1]), r"signal tokens for image \(4\), video \(24\), audio \(8\)"),
    ],
)
def test_folders_of_other_runs_are_refused(run, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        Workdir(run).init_or_validate(*arguments)
    assert "\n" not in str(caught.value)
    Workdir(run).init_or_validate("stage1", delta(), "")  # and its own is taken


def test_folders_with_other_files_are_refused(tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(UserError, match="is not empty and holds no run: give a new --workdir"):
        Workdir(tmp_path).init_or_validate("stage1", delta(), "")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["owner/delta", "owner/delta@v1", "./weights/delta", "../weights/delta", ""])
def test_the_base_delta_is_a_hub_id_or_an_absolute_path(name, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Workdir("run").init_or_validate("stage1", delta(), name)
    recorded = Workdir("run").base_delta
    assert recorded == (str((folder / name).resolve()) if name.startswith(".") else name)
    Workdir("run").check_base(name)
