"""docs/evaluation.md has the table of tasks, which `python -m tests.evaluation.tasks.test_docs` writes into it."""

import itertools
import re
import sys

from nextgpt_jax.evaluation.tasks import TASKS, find_task
from nextgpt_jax.evaluation.types import Task
from tests import ROOT
from tests.evaluation.layouts import image

DOCS = ROOT / "docs" / "evaluation.md"
_PART = re.compile(r"(?<=test_docs -->\n).*(?=<!-- end -->)", re.DOTALL)


def tasks_part() -> str:
    """The table of tasks, what differs from the paper, and the data."""
    lines = ["", "| task | | the paper's figures | protocol |", "|---|---|---|---|"]
    for name, task in TASKS.items():
        figures = ", ".join(f"{figure} {value:g}" for figure, value in task.paper.items()) or "none"
        lines.append(f"| `{name}` | {task.title} | {figures} | {task.protocol} |")
    lines += ["", "What is known to differ from the paper, and why:", ""]
    for text, names in _grouped(lambda task: task.differences):
        lines.append(f"- {names}: {text}")
    lines += ["", "What is read below `--data`, and where it comes from:", ""]
    for entries, names in _grouped(lambda task: tuple(task.layout.items())):
        lines.append(f"- {names}")
        lines += [f"  - `{entry}`: {source}" for entry, source in entries]
    return "\n".join([*lines, "", ""])


def _grouped(key) -> list[tuple]:
    """What `key` gives, and the names of the tasks for which it gives that."""
    found: dict = {}
    for name, task in TASKS.items():
        found.setdefault(key(task), []).append(f"`{name}`")
    return [(value, ", ".join(names)) for value, names in found.items()]


def test_the_docs_have_the_table():
    assert _PART.search(DOCS.read_text())[0] == tasks_part(), "run python -m tests.evaluation.tasks.test_docs"


def test_disk_and_time_of_every_task():
    (table,) = re.findall(r"\| task \| download \|.*?\n\n", DOCS.read_text(), re.DOTALL)
    rows = table.strip().splitlines()[2:]
    named = list(itertools.chain(*(re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows)))
    assert [name if name[0] != "-" else f"msrvtt-generation{name}" for name in named] == list(TASKS)


def test_a_command_for_every_task():
    assert re.findall(r"^    nextgpt evaluate ([a-z0-9-]+) \$CONFIG", DOCS.read_text(), re.MULTILINE) == list(TASKS)


def test_the_example_of_a_task(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    image_file = tmp_path / "data" / "wren" / "1.jpg"
    image(image_file)
    task = find_task(str(tmp_path / "mine.py"))
    assert isinstance(task, Task)
    (sample,) = task.load(tmp_path / "data")
    assert (sample.id, sample.references, sample.inputs) == ("wren/1", {"answer": "wren"}, {"image": [image_file]})


if __name__ == "__main__":
    DOCS.write_text(_PART.sub(lambda _: tasks_part(), DOCS.read_text()))
    sys.exit()
