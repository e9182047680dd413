"""What the processes of test_workers.py compute."""

import os
import sys


def scaled(shared, task):
    """A product; not in the process with the number 0, in which it ends, or fails if the task is negative."""
    factor, parent = shared
    if os.getpid() != parent:
        assert "jax" not in sys.modules
        if task == 0:
            os._exit(1)
    if task < 0:
        raise ValueError(f"negative: {task}")
    return factor * task
