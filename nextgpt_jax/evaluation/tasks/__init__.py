"""The table of tasks, and how a task is found: by its name, or in a Python file that defines TASKS."""

import pathlib
import sys
import traceback
import types
from collections.abc import Mapping, Sequence

from nextgpt_jax.config_files import config_folder
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.evaluation.tasks import (
    activitynet_qa,
    audiocaps,
    coco,
    davis,
    gqa,
    llava_bench,
    msrvtt,
    mvbench,
    scienceqa,
    vctk,
    vqa,
)
from nextgpt_jax.evaluation.types import Task


def _table(*families: Sequence[Task]) -> dict[str, Task]:
    return {task.name: task for family in families for task in family}


TASKS: dict[str, Task] = _table(  # name -> task
    [coco.TASKS[0], audiocaps.TASKS[0], *msrvtt.TASKS[:2]],
    [coco.TASKS[1], audiocaps.TASKS[1], msrvtt.TASKS[2]],
    [*coco.TASKS[2:], *vctk.TASKS, *davis.TASKS],
    [*vqa.TASKS, *gqa.TASKS, *activitynet_qa.TASKS, *mvbench.TASKS, *llava_bench.TASKS, *scienceqa.TASKS],
)


def find_task(name: str) -> Task:
    """A task by its name in TASKS, that of an example of this project ("keypad"), or a file.

        find_task("coco-captions"), find_task("keypad"), find_task("mine.py:birds")

    Args:
      name: a task, or a Python file that defines `TASKS`, tasks by name, with ":NAME" for one of them. Without it, the
        one that is named as the file, or its only one. A file of this path goes before a name.

    Raises:
      UserError: there is no such task or file, or the file has an error.
    """
    stem, colon, wanted = name.partition(":")
    path = pathlib.Path(stem)
    if not path.is_file():
        if name in TASKS:
            return TASKS[name]
        path = _examples() / stem / "tasks.py"
        if stem not in _example_names():
            if stem.endswith(".py") or "/" in stem:
                raise UserError(f"no such file of tasks: {stem}")
            known = task_names()
            raise UserError(f"no task {name!r} (there are {', '.join(known)}){nearest(name, known)}")
        if (root := str(_examples().parent)) not in sys.path:  # its file imports others of the example
            sys.path.append(root)
        stem = path.parent.name
    else:
        stem = path.stem
    tasks = _read(path.absolute())
    if not colon:
        wanted = stem if stem in tasks else [*tasks][0]
        if stem not in tasks and len(tasks) > 1:
            raise UserError(f"{path} has several tasks: give one of {', '.join(f'{name}:{key}' for key in tasks)}")
    if wanted not in tasks:
        raise UserError(f"{path} has no task {wanted!r} (there are {', '.join(tasks)}){nearest(wanted, tasks)}")
    return tasks[wanted]


def task_names() -> list[str]:
    """What `find_task` finds without a file, in the order of the table."""
    return [*TASKS, *_example_names()]


def _examples() -> pathlib.Path:
    """The folder of this project's examples: next to its configs."""
    return config_folder().parent / "examples"


def _example_names() -> list[str]:
    return sorted(file.parent.name for file in _examples().glob("*/tasks.py"))


def _read(path: pathlib.Path) -> dict[str, Task]:
    """The tasks of a file."""
    module = types.ModuleType(f"tasks of {path}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look up the module that they are defined in
    try:
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
        tasks = module.TASKS
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = ":".join(map(str, (path, *lines[-1:])))
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not (isinstance(tasks, Mapping) and tasks and all(isinstance(task, Task) for task in tasks.values())):
        raise UserError(f"TASKS of {path} should be tasks by name, not {tasks!r:.60}")
    return dict(tasks)
