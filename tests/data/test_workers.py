"""Work in other processes."""

import os
import sys

import pytest

from nextgpt_jax.data.workers import compute
from tests.data.scaled import scaled


def test_results_come_in_order():
    """What a process cannot do is done here, and an error is raised here."""
    shared = 3, os.getpid()
    for tasks in ([*range(1, 9)], [1, 0, 2, 3, 0, 4, 5, 6, 7, 8]):
        assert list(compute(scaled, shared, tasks, 2)) == [3 * task for task in tasks]
    assert list(compute(lambda shared, task: shared + task, 1, [1, 2], 2)) == [2, 3], "which cannot be pickled"
    found = compute(scaled, shared, [1, -2, 3, 4, 5, 6, 7], 2)
    assert next(found) == 3
    with pytest.raises(ValueError, match="negative: -2"):
        next(found)


def test_no_process_can_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert list(compute(scaled, (3, os.getpid()), [1, 2], 2)) == [3, 6]
