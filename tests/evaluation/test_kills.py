"""Evaluations by real processes: one that is killed, and several that share a run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests import ROOT
from tests.evaluation import worker

SECONDS = 1800  # for one process, on a busy machine


def start(*arguments):
    command, environment = [sys.executable, *map(str, arguments)], os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    """What they print."""
    try:
        found = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), found
    return found


def kill_within(process, folder, count):
    """Kills a process when it has answered `count` samples, and returns the lines that it has written then."""
    answers, lines = folder / "answers.jsonl", []
    while process.poll() is None and len(lines) < count:
        lines = answers.read_text().splitlines() if answers.exists() else []
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert not (folder / "result.json").exists(), output
    return answers.read_text().splitlines()[:count]


def figures(folder):
    return json.loads((folder / "result.json").read_text())["figures"]


@pytest.mark.slow
def test_killed_and_shared_runs_have_the_figures_of_one_process(tiny_root, tmp_path):
    command = ["-m", "tests.evaluation.worker", tiny_root]
    worker.run(tiny_root, tmp_path / "whole", 0)
    expected = figures(tmp_path / "whole")
    before = kill_within(start(*command, tmp_path / "killed", 0.2), tmp_path / "killed", 2)
    finish(start(*command, tmp_path / "killed", 0))
    assert figures(tmp_path / "killed") == expected
    lines = [(tmp_path / name / "answers.jsonl").read_text().splitlines() for name in ("killed", "whole")]
    assert lines[0] == lines[1] and lines[0][:2] == before
    finish(*(start(*command, tmp_path / "shared", 0.1, f"{i}/2") for i in range(2)))
    assert figures(tmp_path / "shared") == expected


@pytest.mark.slow
def test_the_command_is_continued_after_a_kill(tiny_root, tmp_path):
    """On the keypad model, whole."""

    def command(folder):
        task = ROOT / "tests" / "evaluation" / "small.py"
        options = [f"--data={tiny_root / 'data'}", f"--output={tmp_path / folder}", "--config.eval.batch=1"]
        return start("-m", "nextgpt_jax", "evaluate", task, "--config=keypad", *options)

    finish(command("whole"))
    kill_within(command("killed"), tmp_path / "killed", 2)
    finish(command("killed"))
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
