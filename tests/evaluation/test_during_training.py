"""A small evaluation of the model of the moment."""

import dataclasses
import json

import pytest
from flax import nnx

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.during_training import TrainingEvaluation
from nextgpt_jax.evaluation.evaluate import evaluate
from nextgpt_jax.evaluation.run import prepare
from nextgpt_jax.training.stages import STAGES
from tests import ROOT
from tests.evaluation.small import TASK

FILE = str(ROOT / "tests" / "evaluation" / "small.py")


def test_figures_are_those_of_an_evaluation(tiny_system, tiny_engine, tiny_config, tiny_root, tmp_path):
    settings = EvalConfig(batch=2, task=FILE, data=str(tiny_root / "data"), limit=7)
    config = dataclasses.replace(tiny_config, eval=settings)
    evaluation = TrainingEvaluation(config)
    assert evaluation.needs_decoders
    evaluator = evaluation.begin(tiny_system, tmp_path / "evaluations")
    found = evaluator(3, *nnx.split(tiny_system.model, STAGES["stage3"].trainable, ...))
    run = prepare(TASK, tiny_root / "data", config, tmp_path / "run")
    result = evaluate(run, tiny_engine.config, lambda: tiny_engine)
    expected = {figure["name"]: figure["value"] for figure in result["figures"] if figure["value"] is not None}
    assert found.figures == expected and found.lower_is_better["Brightness"]
    assert found.problems[0] == "java: not computed: java is not installed" and found.problems[1].startswith("s5: ")
    assert [len(media) for _, _, media in found.answers] == [0, 1, 0, 0, 0, 0, 1]
    place = tmp_path / "evaluations" / "3"
    assert json.loads((place / "result.json").read_text())["weights"] == {"step": "3"}
    lines = (place / "answers.jsonl").read_text()
    (place / "answers.jsonl").write_text(lines.replace('"text": "', '"text": "of other weights '))
    again = evaluator(3, *nnx.split(tiny_system.model, STAGES["stage3"].trainable, ...))
    assert again.figures == found.figures and (place / "answers.jsonl").read_text() == lines


def test_what_a_model_cannot_do_is_said_at_the_beginning(tiny_system, tiny_config, tiny_root, tmp_path):
    file = tmp_path / "smells.py"
    file.write_text(
        "import dataclasses\nfrom tests.evaluation.small import TASK\n"
        "TASKS = {'smells': dataclasses.replace(TASK, options={'modality': 'smell'}, name='smells')}\n"
    )
    settings = EvalConfig(task=str(file), data=str(tiny_root / "data"))
    evaluation = TrainingEvaluation(dataclasses.replace(tiny_config, eval=settings))
    with pytest.raises(UserError, match="smells: modality 'smell' is not one of"):
        evaluation.begin(tiny_system, tmp_path)
    with pytest.raises(UserError, match="no task 'none'"):
        TrainingEvaluation(dataclasses.replace(tiny_config, eval=EvalConfig(task="none")))
