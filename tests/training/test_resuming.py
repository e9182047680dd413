"""What a run that goes on may change, and what run.json says of it."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest
from flax import nnx

from nextgpt_jax.config import ExperimentConfig, field_names, set_field
from nextgpt_jax.errors import UserError
from nextgpt_jax.training.provenance import commit, provenance
from nextgpt_jax.training.resuming import CONSEQUENCES, REFUSED, check_changes, data_record, record_process
from nextgpt_jax.weights.run_checkpoints import Workdir


@pytest.fixture
def data(tmp_path) -> pathlib.Path:
    (tmp_path / "captions.json").write_text('[{"caption": "a dog"}]')
    return tmp_path / "captions.json"


@pytest.fixture
def run(tmp_path, data) -> Workdir:
    """A run with one checkpoint."""
    delta = nnx.State({"input_proj": {"kernel": nnx.Param(jnp.zeros(2))}})
    with Workdir(tmp_path / "run") as run:
        run.init_or_validate("stage1", delta, "")
        record_process(run, ExperimentConfig(), data_record([data]), provenance(0), [])
        run.save(1, delta, {"count": jnp.int32(1)}, {"examples": 4}, losses={"loss": 1.0})
    return run


def test_the_table_names_fields_that_exist():
    sections = {name.split(".")[0] for name in field_names()}
    assert {*CONSEQUENCES, *REFUSED} <= {*field_names(), *sections}


@pytest.mark.parametrize("name, value", [("train.seed", 1), ("model.lora_alpha", 8.0), ("model.template", "chat")])
def test_settings_without_which_the_weights_mean_something_else_are_refused(run, data, name, value):
    config = ExperimentConfig()
    set_field(config, name, value)
    with pytest.raises(UserError, match=rf"was trained with {name}=.* cannot go on; set it back, or .*--init_from="):
        check_changes(run, config, data_record([data]))


@pytest.mark.parametrize(
    "name, value, consequence",
    [
        ("train.steps", 99, " (the learning rate follows the new schedule from here)"),
        ("optim.lr", 1.0, " (from here on)"),
        ("data.batch_size", 7, " (this epoch may repeat or miss examples)"),
        ("data.num_workers", 7, ""),
        ("mesh.fsdp", 2, ""),
        ("model.llm", "owner/other", " (the frozen weights should be the same ones)"),
    ],
)
def test_what_other_changes_do_is_said(run, data, name, value, consequence):
    config = ExperimentConfig()
    set_field(config, name, value)
    (change,) = check_changes(run, config, data_record([data]))
    assert change.line.startswith(f"{name}: ") and change.line.endswith(f" -> {value!r}{consequence}")


def test_data_files_may_move_and_not_change(run, data):
    moved = data.rename(data.with_name("moved.json"))
    assert check_changes(run, ExperimentConfig(), data_record([moved])) == []
    moved.write_text(moved.read_text().replace("dog", "cat"))
    with pytest.raises(
        UserError, match=r"other contents than those .*captions.json; now .*moved.json.*: put them back"
    ):
        check_changes(run, ExperimentConfig(), data_record([moved]))


def test_runs_of_earlier_versions_and_without_checkpoints(run, data):
    file = run.path / "run.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({name: content[name] for name in content if name not in ("data", "history")}))
    data.write_text("[]")
    assert (run.data, run.history) == ({}, []) and check_changes(run, ExperimentConfig(), data_record([data])) == []
    config = ExperimentConfig()
    config.train.seed = 5
    (run.path / "1").rename(run.path / "damaged-1-1")
    assert check_changes(run, config, data_record([data])) == []


def test_the_history_of_a_run(run, data):
    config = ExperimentConfig()
    config.optim.lr = 1.0
    changes = check_changes(run, config, data_record([data]))
    record_process(run, config, data_record([data], [data]), provenance(1), changes)
    first, second = run.history
    assert (first["step"], second["step"]) == (0, 1) and "changed" not in first
    assert second["changed"] == {"optim.lr": [4e-4, 1.0]} and second["command"] == sys.argv
    assert {"python", "nextgpt_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"} <= first["versions"].keys()
    assert run.data["training"]["files"] == run.data["validation"]["files"] == [str(data)]
    assert run.data["training"]["fingerprint"] == run.data["validation"]["fingerprint"]


def test_the_commit_of_a_checkout(tmp_path):
    assert commit(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    assert commit(tmp_path) == ""  # it is none
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    clean = commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"
