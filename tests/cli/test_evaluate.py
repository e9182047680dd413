"""The command nextgpt evaluate."""

import json

import jax
import pytest

from nextgpt_jax.cli import evaluate
from nextgpt_jax.cli.flags import run_command
from tests import ROOT

TASKS = ROOT / "tests" / "evaluation" / "small.py"


def run(capsys, *arguments):
    status = run_command(evaluate.main, ["nextgpt evaluate", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.fixture
def config(tiny_root, tmp_path):
    """A config file of the tiny system."""
    path = tmp_path / "tiny.py"
    path.write_text(
        "import pathlib\nfrom tests import tiny\n\n"
        f"def get_config():\n    config = tiny.experiment(pathlib.Path({str(tiny_root)!r}), 'stage3')\n"
        f"    config.model.delta = 'x'\n    return config\n"
    )
    return path


def test_a_task_of_a_file(capsys, config, tiny_engine, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr("nextgpt_jax.cli.infer.load_engine", lambda *_: tiny_engine)
    monkeypatch.setattr("nextgpt_jax.weights.assemble.model_config", lambda *_, **__: tiny_engine.config)
    monkeypatch.setattr("nextgpt_jax.evaluation.fingerprints.weights", lambda *_: {"llm": "1"})
    arguments = [f"{TASKS}", f"--config={config}", f"--data={tiny_root / 'data'}", f"--output={tmp_path / 'run'}"]
    arguments += ["--limit=2", "--config.eval.batch=2"]
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    assert "a subset of 2 of 7 samples, seed 0" in out and "not computed: java is not installed" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["weights"] == {"llm": "1"} and result["subset"]["of"] == 7
    status, _, err = run(capsys, *arguments, "--seed=1")
    assert status == 2 and "other" in err and "give another --output" in err
    assert run(capsys, *arguments, "--shard=0/2", "--merge")[0] == 0
    other = tmp_path / "other"
    assert run(capsys, *arguments[:3], f"--output={other}", "--limit=4", "--config.eval.batch=2")[0] == 0
    status, out, err = run(capsys, "--compare", tmp_path / "run", other, f"--output={tmp_path / 'c.json'}")
    assert status == 0 and "figures are of the 2 that both have" in out and "not compared: A has no java" in out, err
    assert json.loads((tmp_path / "c.json").read_text())["samples"] == 2
    status, _, err = run(capsys, "--compare", tmp_path / "run", other / "result.json", f"--data={tmp_path}")
    assert status == 0  # whose samples are made up
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "start 2 processes by themselves with --shard=0/2, --shard=1/2" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config is missing"),
        (["--config=keypad"], "which task?"),
        (["nothing", "--config=keypad"], "no task 'nothing'"),
        ([f"{TASKS}", "--config=keypad"], "--data=DIR is missing: the folder with images/ (made by tests)"),
        ([f"{TASKS}", "--config=keypad", "--step=3"], "choose weights of --workdir"),
        ([f"{TASKS}", "--config=keypad", "--limit=0"], "give at least 1"),
        ([f"{TASKS}", "--config=keypad", "--shard=4"], "give i/n"),
        ([f"{TASKS}", "--config=keypad", "--data=x", f"--output={__file__}"], "is a file"),
        (["--list", "--limit=2"], "--list stands alone"),
        (["--compare", "x"], "--compare RUN RUN: give two folders"),
        (["--compare=x", "y"], "no such file: x"),
        (["--compare", "x", "y", "--resamples=1"], "resamples"),
        (["--compare", "x", "y", "--limit=1"], "unknown flag --limit"),
    ],
)
def test_mistakes(capsys, arguments, message):
    status, _, err = run(capsys, *arguments)
    assert status == 2 and message in err and len(err.splitlines()) == 1


def test_help_and_list(capsys):
    assert run(capsys, "--list")[0] == 0
    with pytest.raises(SystemExit):
        evaluate.main(["nextgpt evaluate", "--help"])
    assert "--shard" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.main(["nextgpt evaluate", "--compare", "--help"])
    assert "--resamples" in capsys.readouterr().out
