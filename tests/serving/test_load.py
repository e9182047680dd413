"""A minute of the load that benchmarks/serving.py measures."""

import subprocess
import sys

import pytest

from tests import ROOT

pytest.importorskip("uvicorn")


@pytest.mark.slow
def test_no_answer_is_lost_or_crossed_under_load(tmp_path):
    argv = [sys.executable, "benchmarks/serving.py", "--seconds=30", "--no_torch", "--sample=4"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every answer its own: True") == 2
