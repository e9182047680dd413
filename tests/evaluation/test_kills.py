"""Evaluations by real processes: one that is killed, and several that share a run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests import ROOT
from tests.evaluation.small import TASK

FILE = ROOT / "tests" / "evaluation" / "small.py"


def start(data, folder, *options):
    arguments = ["evaluate", str(FILE), "--config=keypad", f"--data={data}", f"--output={folder}"]
    command = [sys.executable, "-m", "nextgpt_jax", *arguments, "--config.eval.batch=1", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def figures(folder):
    return json.loads((folder / "result.json").read_text())["figures"]


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_killed_and_shared_runs_have_the_figures_of_one_process(tiny_root, tmp_path):
    data, count = tiny_root / "data", len(TASK.load(tiny_root / "data"))
    finish(start(data, tmp_path / "whole"))
    expected = figures(tmp_path / "whole")
    process, answers, killed = start(data, tmp_path / "killed"), tmp_path / "killed" / "answers.jsonl", 0
    while process.poll() is None and not killed:
        lines = answers.read_text().splitlines() if answers.exists() else []
        if 2 <= len(lines) < count:
            process.send_signal(signal.SIGKILL)
            killed = len(lines)
        time.sleep(0.01)
    process.communicate()
    assert killed and not (tmp_path / "killed" / "result.json").exists()
    before = answers.read_text().splitlines()[:killed]
    finish(start(data, tmp_path / "killed"))
    assert figures(tmp_path / "killed") == expected
    assert answers.read_text().splitlines()[:killed] == before  # not made again
    processes = [start(data, tmp_path / "shared", f"--shard={i}/2") for i in range(2)]
    outputs = [finish(process) for process in processes]
    assert sum("the last one computes the figures" in output for output in outputs) == 1
    assert figures(tmp_path / "shared") == expected
