"""Runs in a bucket: every file of a workdir, and its checkpoints, on a local stand-in for Google Cloud Storage."""

import json
import pathlib

import jax.numpy as jnp
import pytest
from etils.epath.gpath import PosixGPath
from flax import nnx

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.readers import Problem
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import is_remote, normal_path
from nextgpt_jax.training.loop import train
from nextgpt_jax.training.metrics import MetricsLog
from nextgpt_jax.training.provenance import provenance
from nextgpt_jax.training.resuming import check_changes, data_record, record_process
from nextgpt_jax.training.skipped import SkipLog
from nextgpt_jax.weights.run_checkpoints import Workdir
from tests.training.test_sampling import SHOWN
from tests.weights.object_store import object_store

RUN = "gs://bucket/runs/one"


@pytest.fixture
def store():
    with object_store() as objects:
        objects.clear()
        yield objects
        objects.clear()


def delta(value: float) -> nnx.State:
    return nnx.State({"input_proj": {"kernel": nnx.Param(jnp.full(8, float(value)))}})


def test_checkpoints(store, tmp_path):
    (tmp_path / "data.json").write_text("[]")
    config, data = ExperimentConfig(), data_record([tmp_path / "data.json"])
    for steps in ((1, 2), (3, 4)):
        with Workdir(RUN, keep=1, keep_best=1) as run:
            assert str(run.path) == RUN
            changes = check_changes(run, config, data)
            run.init_or_validate("stage1", delta(0), "")
            record_process(run, config, data, provenance(run.resume_step()), changes)
            for step in steps:
                opt, losses = {"count": jnp.int32(step)}, {"loss": float(step)}
                run.save(step, delta(step), opt, {"examples": step}, losses=losses, average=delta(step + 0.5))
    run = Workdir(f"{RUN}/")
    assert (run.steps(), run.find_step("best")) == ([4, 1], 1)
    assert [entry["step"] for entry in run.history] == [0, 2] and run.config() == config
    found, opt, position = run.restore(4, delta(0), {"count": jnp.int32(0)})
    assert (float(found["input_proj"]["kernel"][0]), int(opt["count"]), position["examples"]) == (4.0, 4, 4)
    assert float(run.restore_delta(delta(0), "best")[0]["input_proj"]["kernel"][0]) == 1.5
    with pytest.raises(UserError, match="belongs to another model"):
        run.check(nnx.State({"lora": nnx.Param(jnp.zeros(2))}))
    lost = next(name for name in store if name.startswith("/bucket/runs/one/4/delta/d/"))
    del store[lost]
    assert run.resume_step() == 1 and run.steps() == [1]
    assert any(name.startswith("/bucket/runs/one/damaged-4-1/") for name in store)
    assert not pathlib.Path("gs:").exists()


def test_logs(store):
    folder = normal_path(RUN)
    for start in (0, 2):
        skipped = SkipLog(folder / "skipped.jsonl", {"a.json": 100}, 0.1)
        skipped.start([], start)
        with MetricsLog(folder, start, True) as log:
            for step in range(start + 1, start + 4):
                log.write(step, {"loss": float(start)})
                skipped.add(step, Problem(0, "a.json", f"record {step}", "no image"))
                skipped.settle(step, step)
            log.write_samples(start + 1, SHOWN)
    lines = [json.loads(line) for line in store["/bucket/runs/one/metrics.jsonl"].getvalue().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0), (2, 0), (3, 2), (4, 2), (5, 2)]
    lines = store["/bucket/runs/one/skipped.jsonl"].getvalue().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    events = [store[name].getvalue() for name in store if "events.out.tfevents" in name]
    assert len(events) == 2 and all(b"samples/0_0_image" in content for content in events)


@pytest.mark.parametrize(
    "path, message",
    [
        ("s3://bucket/run", "s3:// cannot be used here: give a folder or gs://BUCKET/NAME"),
        (pathlib.Path("gs://bucket/run"), "gs:/bucket/run: write a URL as text"),
        ("gs://", "which bucket"),
    ],
)
def test_other_urls_are_refused_before_anything_is_loaded(path, message):
    with pytest.raises(UserError, match=message):
        train(ExperimentConfig(), path)
    with pytest.raises(UserError, match=message):
        Workdir(path)


def test_what_cannot_be_reached_or_written(store, monkeypatch):
    with pytest.raises(UserError, match="--profile writes to this machine"):
        train(ExperimentConfig(), RUN, profile=(1, 2))

    def fail(error):
        def exists(path):
            raise error

        monkeypatch.setattr(PosixGPath, "exists", exists)

    fail(ImportError("gcsfs"))
    with pytest.raises(UserError, match=r"gs://other needs gcsfs: pip install 'nextgpt-jax\[gcs\]'"):
        Workdir("gs://other/run")
    fail(RuntimeError("no access\nmore"))
    with pytest.raises(UserError, match="gs://third cannot be reached: no access"):
        Workdir("gs://third/run")


def test_local_paths_are_as_they_were(tmp_path):
    assert not is_remote(tmp_path) and not is_remote("a:/b") and not is_remote("runs/gs:x")
    assert normal_path(tmp_path / "a" / ".." / "b") == tmp_path / "b"
    assert is_remote("gs://a/b")
