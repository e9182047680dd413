"""Tasks by name, of a file, and of an example."""

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.tasks import TASKS, find_task, task_names
from tests import ROOT

FILE = """
from __future__ import annotations

import dataclasses

from nextgpt_jax.evaluation.types import Sample, Task

@dataclasses.dataclass
class Birds:
    color: str

def task(name):
    load = lambda data: [Sample("0", Birds("red").color)]
    return Task(name, "Birds", {{}}, load, lambda *_: [], {{}}, {{}}, "all of them")

TASKS = {}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(tasks: str, name: str = "mine.py"):
        (tmp_path / name).write_text(FILE.format(tasks))
        return name

    return write


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        find_task(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file(write):
    birds = find_task(write("{'birds': task('birds')}"))
    assert birds.name == "birds" and next(iter(birds.load(ROOT))).prompt == "red"
    several = write("{name: task(name) for name in ('birds', 'mine')}")
    assert (find_task(several).name, find_task(f"./{several}:birds").name) == ("mine", "birds")


def test_the_table():
    assert all(find_task(name) is task and task.name == name for name, task in TASKS.items())
    assert set(TASKS) <= set(task_names())


def test_an_example(write, tmp_path, monkeypatch):
    (tmp_path / "examples" / "pond").mkdir(parents=True)
    write("{name: task(name) for name in ('pond', 'ducks')}", "examples/pond/tasks.py")
    monkeypatch.setattr("nextgpt_jax.evaluation.tasks.config_folder", lambda: tmp_path / "configs")
    assert (find_task("pond").name, find_task("pond:ducks").name) == ("pond", "ducks")
    assert task_names()[-1] == "pond"
    assert "pond" in refusal("pound") and refusal("pound").endswith("did you mean pond?")


def test_refusals(write):
    assert refusal("no-such").startswith("no task 'no-such' (there are ")
    assert refusal("no/such.py") == "no such file of tasks: no/such.py"
    assert refusal(write("{}")).endswith("mine.py should be tasks by name, not {}")
    assert "should be tasks by name" in refusal(write("{'birds': 1}"))
    assert "give one of mine.py:a, mine.py:b" in refusal(write("{name: task(name) for name in 'ab'}"))
    assert refusal("mine.py:c").endswith("mine.py has no task 'c' (there are a, b)")
    assert refusal(write("{'a': 1 / 0}")).endswith("mine.py:16: ZeroDivisionError: division by zero")
