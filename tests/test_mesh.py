"""Devices, where JAX finds none."""

import os
import subprocess
import sys


def test_a_platform_that_is_not_there_is_one_line():
    """In a process of its own: JAX chooses its platform once."""
    program = "from nextgpt_jax.cli.main import run; run()"
    command = [sys.executable, "-c", program, "convert", "llm", "--source=nowhere", "--output=neither"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cuda"})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: JAX_PLATFORMS=cuda: there is no such device here")
    assert done.stderr.count("\n") == 1
