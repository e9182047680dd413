"""Every task from its dataset's layout to its figures, through the tiny system and the smallest feature networks."""

import dataclasses

import pytest

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.evaluate import evaluate
from nextgpt_jax.evaluation.run import prepare
from nextgpt_jax.evaluation.tasks import TASKS, mvbench
from tests import feature_networks
from tests.evaluation.layouts import LAYOUTS

QUICK = ("okvqa",)  # others compile programs of the engine or of networks
BATCH, SAMPLES = 8, 20


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Settings with the smallest networks."""
    folder = tmp_path_factory.mktemp("networks")
    feature_networks.write_inception(folder / "inception.pth")
    feature_networks.write_cnn14(folder / "cnn14.pth")
    feature_networks.write_clip(folder / "clip")
    names = {"inception": "inception.pth", "cnn14": "cnn14.pth", "clip": "clip"}
    return EvalConfig(batch=BATCH, **{setting: str(folder / name) for setting, name in names.items()})


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TASKS])
def test_from_data_to_figures(name, tiny_engine, tiny_config, networks, judge, tmp_path, monkeypatch):
    """And the same figures, to the digit, of a run that is interrupted and continued."""
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mvbench, "INSTRUCTION", "Watch.")  # the tiny system reads 128 tokens
    LAYOUTS[name](tmp_path / "data", SAMPLES)
    count = min(SAMPLES, len(list(TASKS[name].load(tmp_path / "data"))))
    assert count >= SAMPLES - 1  # an image with two animals is none to edit
    config = dataclasses.replace(tiny_config, eval=dataclasses.replace(networks, judge=judge.url, judge_model="judge"))
    options = TASKS[name].options | {"max_new_tokens": 24, "num_inference_steps": 2}
    task = dataclasses.replace(TASKS[name], options=options)

    def evaluated(folder):
        run = prepare(task, tmp_path / "data", config, tmp_path / folder, limit=SAMPLES)
        return evaluate(run, tiny_engine.config, lambda: tiny_engine)

    result = evaluated("whole")
    assert result["samples"] == count and result["unanswered"] == 0, result["errors"]
    computed = {figure["name"].lower() for figure in result["figures"] if figure["value"] is not None}
    failed = {figure["metric"] for figure in result["figures"] if "error" in figure}
    assert failed <= {"meteor", "spider"}  # without Java, or the models of its programs
    assert {name.lower() for name in task.paper} <= computed | failed

    generate, asked = tiny_engine.generate, []

    def generate_once(requests):
        asked.append(len(requests))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return generate(requests)

    monkeypatch.setattr(tiny_engine, "generate", generate_once)
    with pytest.raises(KeyboardInterrupt):
        evaluated("parts")
    assert evaluated("parts")["figures"] == result["figures"]
    sizes = [min(BATCH, count - done) for done in range(0, count, BATCH)]
    assert asked == [*sizes[:2], *sizes[1:]]


@pytest.mark.parametrize("name", [n for n in TASKS if n.endswith(("generation", "1ka", "object-editing", "s-editing"))])
def test_missing_networks_are_reported_first(name, tmp_path):
    LAYOUTS[name](tmp_path, 2)
    with pytest.raises(UserError, match=r"--config\.eval\.(inception|clip|cnn14)$"):
        TASKS[name].metrics(list(TASKS[name].load(tmp_path)), EvalConfig())
