"""A whole evaluation: answers, figures, result and report of a task, in the folder of the run."""

import contextlib
import fcntl
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from tqdm import tqdm

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.answers import Answers, claim
from nextgpt_jax.evaluation.choosing import WHOLE, Shard
from nextgpt_jax.evaluation.measuring import measure
from nextgpt_jax.evaluation.report import write_report
from nextgpt_jax.evaluation.results import make_result, write_result
from nextgpt_jax.evaluation.run import Run, answer
from nextgpt_jax.evaluation.types import Metric, Outcome
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.models.nextgpt import NExTGPTConfig


def evaluate(
    run: Run,
    model: NExTGPTConfig,
    make_engine: Callable[[], Engine],
    *,
    shard: Shard = WHOLE,
    merge: bool = False,
) -> dict[str, Any] | None:
    """Answers what is not answered yet, computes the figures, and writes RUN/result.json and the report.

    Args:
      model: the config of the model.
      make_engine: loads the model; called only if something is to be answered.
      shard: the part of several processes that this one answers. The one that finishes last computes the figures.
      merge: answer nothing.

    Returns:
      The content of result.json; None, if other shards are not finished.

    Raises:
      UserError: the task, the model, the folder and the settings do not fit each other, or no sample could be answered.
    """
    metrics = run.task.metrics(run.samples, run.config.eval)  # raises for what is missing, before anything is made
    if merge:
        claim(run.folder, run.record())
        answers = Answers(run.folder)
    else:
        with _bar(sum(map(len, shard.part(run.batches))), "answers") as bar:
            answers = answer(run, model, make_engine, shard=shard, on_answered=_shown(bar))
    if missing := len(run) - len(answers.of(run.batches)):
        if merge:
            raise UserError(f"{missing:,} of {len(run):,} samples in {run.folder} are not answered: run their shards")
        return None
    with _measuring(run.folder) as alone:
        return _measured(run, metrics, answers) if alone else None


def _measured(run: Run, metrics: Sequence[Metric], answers: Answers) -> dict[str, Any]:
    errors = answers.errors()
    if len(errors) == len(run):
        first = next(iter(errors))
        raise UserError(f"none of the {len(run):,} samples could be answered; {run.samples[first].id}: {errors[first]}")

    def outcome(index: int) -> Outcome:
        return answers.outcome(index, run.samples[index])

    with _bar(len(run) * len(metrics), "numbers") as bar:

        def show(name: str, count: int) -> None:
            bar.set_description(name, refresh=False)
            bar.update(count)

        measured = measure(metrics, len(run), outcome, run.folder, show)
    result = make_result(run, measured, answers)
    write_result(run, result)
    write_report(run.folder, result, measured, outcome, errors)
    return result


def _bar(total: int, unit: str) -> tqdm:
    return tqdm(total=total, unit=unit, leave=False, disable=not sys.stderr.isatty())


def _shown(bar: tqdm) -> Callable[[int], None]:
    """Advances a bar; what is there at the beginning does not count for its rate."""
    begun = False

    def show(count: int) -> None:
        nonlocal begun
        if begun:
            bar.update(count)
        else:
            bar.initial = bar.n = count
            bar.refresh()
        begun = True

    return show


@contextlib.contextmanager
def _measuring(folder: pathlib.Path) -> Iterator[bool]:
    """Whether this process computes the figures: not, if another one of the same run does so right now."""
    with (folder / "measuring.lock").open("ab") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks: the same figures are computed twice
            pass
        yield True


def refuse_jobs() -> None:
    """Raises UserError in a job of several processes, whose devices are one mesh."""
    if (count := jax.process_count()) > 1:
        raise UserError(
            f"this is a job of {count} processes, and evaluations have none: start {count} processes by themselves "
            f"with --shard=0/{count}, --shard=1/{count}, ... and the same --output"
        )
