"""Logging to wandb: by its documented interface, and offline where it is installed."""

import importlib.util
import sys
import types

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.training import wandb_log
from nextgpt_jax.training.metrics import MetricsLog
from tests.training.test_sampling import SHOWN


class Run:
    """What wandb.init returns."""

    def __init__(self):
        self.logged, self.finished, self.metrics = [], False, {}
        self.define_metric = lambda name, step_metric=None: self.metrics.update({name: step_metric})
        self.log = self.logged.append

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch) -> list:
    """The arguments of wandb.init and what it returned, in the place of the package."""
    found = []

    def init(**options):
        found.append((options, Run()))
        return found[-1][1]

    kinds = {kind: lambda *args, kind=kind, **options: (kind, *args) for kind in ("Html", "Image", "Audio", "Video")}
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, **kinds))
    return found


def test_a_resumed_run_goes_on_with_its_id(runs, tmp_path):
    for start in (0, 2):
        with MetricsLog(tmp_path, start, True, wandb_project="talk", settings={"train": {"seed": 0}}) as log:
            log.write(start + 1, {"loss": 1.0})
            log.write_samples(start + 1, SHOWN)
    (first, run), (second, _) = runs
    assert first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text() and first["resume"] == "allow"
    assert first["project"] == "talk" and first["config"] == {"train": {"seed": 0}} and first["dir"] == str(tmp_path)
    assert run.finished and run.metrics == {"step": None, "*": "step"}
    metrics, samples = run.logged
    assert metrics == {"step": 1, "loss": 1.0} and samples["samples/0"][0] == "Html"
    media = {name: value[0] for name, value in samples.items() if name.count("_")}
    assert media == {"samples/0_0_image": "Image", "samples/1_0_video": "Video", "samples/2_0_audio": "Audio"}


def test_processes_but_the_first_log_nothing(runs, tmp_path):
    with MetricsLog(tmp_path, 0, False, wandb_project="talk") as log:
        log.write(1, {"loss": 1.0})
    assert not runs and not list(tmp_path.iterdir())


def test_it_is_not_installed_or_cannot_start(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wandb_log.check_wandb("")
    with pytest.raises(UserError, match=r"needs wandb: pip install 'nextgpt-jax\[wandb\]'"):
        wandb_log.check_wandb("talk")

    def init(**_):
        raise ValueError("api_key not configured\nmore")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(UserError, match=r"cannot start \(api_key not configured\): run `wandb login`, or"):
        wandb_log.WandbLog(tmp_path, "talk", {})


def test_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 1):
        with MetricsLog(tmp_path, start, True, wandb_project="talk", settings={"a": 1}) as log:
            log.write(start + 1, {"loss": 1.0})
            log.write_samples(start + 1, SHOWN)
    name = (tmp_path / "wandb_id.txt").read_text()
    written = [*(tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")]
    assert written and all(file.stat().st_size for file in written)
