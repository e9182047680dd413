"""Evaluations while a model is trained, and the checkpoints that they choose."""

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

from nextgpt_jax.config import EvalConfig, ExperimentConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.types import MediaOutput
from nextgpt_jax.training.evaluating import check_evaluation, chosen_figure
from nextgpt_jax.training.loop import train
from nextgpt_jax.weights.run_checkpoints import Workdir
from tests import tiny

LENGTHS = {0: 1.0, 1: 5.0, 2: 9.0, 3: 3.0}
PICTURE = MediaOutput("image", np.zeros((4, 6, 3), np.uint8))


class Found(NamedTuple):
    figures: dict
    lower_is_better: dict
    problems: list
    answers: list


class Evaluation:
    """Figures of a table, by step."""

    needs_decoders = False

    def __init__(self):
        self.steps = []

    def begin(self, loaded, folder):
        assert folder.name == "evaluations" and loaded.model.encoders

        def evaluator(step, graphdef, trainable, frozen):
            self.steps.append(step)
            figures = {"Length": LENGTHS[step], "Errors": 2.0}
            return Found(figures, {"Length": False, "Errors": True}, ["java: none"], [("hi", "ho", [PICTURE])] * 2)

        return evaluator


def test_the_best_checkpoint_is_that_of_a_figure(tiny_root, tmp_path, capsys):
    """Higher is better; and a run that goes on shows no step twice."""
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.train.log_every, config.train.save_every, config.train.max_to_keep, config.train.keep_best = 1, 2, 1, 1
    config.train.steps, config.eval = 2, EvalConfig(every=1, task="small", best="Length")
    first, second = Evaluation(), Evaluation()
    train(config, str(tmp_path / "run"), evaluation=first)
    assert "evaluation at step 1: Length 5.0000, Errors 2.0000; java: none" in capsys.readouterr().out
    config.train.steps = 3
    train(config, str(tmp_path / "run"), evaluation=second)
    assert (first.steps, second.steps) == ([0, 1, 2], [2, 3])
    run = Workdir(tmp_path / "run")
    assert run.steps() == [3, 2] and run.find_step("best") == 2 and run.losses()[2]["score"] == -9.0
    written = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["evaluation/Length"] for line in written if "evaluation/Length" in line} == LENGTHS
    assert len(written) == 4 + 3


def test_the_chosen_figure():
    found = Found({"FID": 3.0, "IS": 8.0}, {"FID": True, "IS": False}, [], [])
    assert (chosen_figure(found, "FID"), chosen_figure(found, "IS")) == (3.0, -8.0)
    with pytest.raises(UserError, match=r"the task has no figure 'FIDS' \(there are FID, IS\); did you mean FID\?"):
        chosen_figure(found, "FIDS")
    assert chosen_figure(found._replace(problems=["spice: java is not installed"]), "SPICE") is None


def test_bad_settings(monkeypatch):
    for settings, message in [
        ({"every": -1}, "should not be negative"),
        ({"best": "FID"}, "set eval.every and eval.task"),
        ({"every": 5}, "eval.every needs eval.task"),
        ({"every": 5, "task": "x", "limit": 0}, "eval.limit is 0"),
        ({"every": 5, "task": "x"}, "use nextgpt train"),
    ]:
        with pytest.raises(UserError, match=message):
            check_evaluation(ExperimentConfig(eval=EvalConfig(**settings)), None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="a job of 2 processes evaluates nothing"):
        check_evaluation(ExperimentConfig(eval=EvalConfig(every=1, task="x")), Evaluation())
    check_evaluation(ExperimentConfig(), None)
