"""The command `nextgpt evaluate`: a table of the paper by one command."""

import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from nextgpt_jax.cli.flags import configure_jax, parse_flags
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import check_folder
from nextgpt_jax.weights.run_steps import parse_step

if TYPE_CHECKING:  # imported where they are used: a typo in a flag should not wait for jax
    from nextgpt_jax.evaluation.choosing import Shard
    from nextgpt_jax.evaluation.types import Task

USAGE = """{program} TASK --config=CONFIG --data=DIR [options]
{program} --list
{program} --compare RUN RUN [options]

Answers the samples of a task and computes its figures. The same command continues an interrupted run. Options of
TASK:"""


def _define(values: flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)

    define("string", "data", "", "folder of the dataset; nextgpt evaluate --list says what is read below it")
    define("string", "output", "", "folder of the run: answers, media, figures, report; default: evaluations/TASK")
    define("string", "workdir", "", "use the weights of this training run")
    define("string", "step", "latest", "with --workdir: the checkpoint to use: latest, best or a step")
    define("boolean", "ema", None, "with --workdir: use the moving average of the weights; default: if there is one")
    define("integer", "limit", None, "evaluate a subset of so many samples; the result says that it is one")
    define("integer", "seed", 0, "of the answers and of the subset")
    define("string", "shard", "0/1", "I/N: this is process I (from 0) of N that share the folder of the run")
    define("boolean", "merge", False, "answer nothing: compute the figures of what all shards have answered")


def main(argv: Sequence[str]) -> None:
    """Parses flags and evaluates. Raises UserError for what the user can mend."""
    program, *arguments = argv
    if "--list" in arguments:
        if arguments != ["--list"]:
            raise UserError("--list stands alone")
        return list_tasks()
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    values = parse_flags([program, *arguments], _define, USAGE)
    if not name:
        raise UserError("which task? nextgpt evaluate TASK --config=... --data=DIR; nextgpt evaluate --list lists them")
    step = parse_step(values.step, "--step")
    if not values.workdir and (values.ema is not None or values["step"].present):
        raise UserError("--step, --ema and --noema choose weights of --workdir")
    from nextgpt_jax.evaluation.choosing import parse_shard

    shard = parse_shard(values.shard)
    if values.limit is not None and values.limit < 1:
        raise UserError(f"--limit={values.limit}: give at least 1 sample")
    from nextgpt_jax.evaluation.tasks import find_task

    task = find_task(name)
    if not values.data and task.layout:
        wanted = "; ".join(f"{file} ({source})" for file, source in task.layout.items())
        raise UserError(f"--data=DIR is missing: the folder with {wanted}")
    output = pathlib.Path(values.output or f"evaluations/{task.name}")
    check_folder(output, "--output")
    configure_jax()
    evaluate(values, task, output, step, shard)


def evaluate(values: flags.FlagValues, task: "Task", output: pathlib.Path, step: str | int, shard: "Shard") -> None:
    """Evaluates a task as the flags say, and prints its figures."""
    from nextgpt_jax.cli.infer import load_engine
    from nextgpt_jax.evaluation import fingerprints
    from nextgpt_jax.evaluation.evaluate import evaluate, refuse_jobs
    from nextgpt_jax.evaluation.results import table
    from nextgpt_jax.evaluation.run import prepare
    from nextgpt_jax.mesh import available_devices
    from nextgpt_jax.weights.assemble import model_config, with_folders
    from nextgpt_jax.weights.run_checkpoints import Workdir

    available_devices()  # raises, before anything is read
    refuse_jobs()
    config, model, signals = values.config, values.config.model, None
    if values.workdir:
        checkpoints = Workdir(values.workdir)
        step, signals = checkpoints.find_step(step), checkpoints.signals
        model = with_folders(model, {"delta": checkpoints.base_delta})
    elif not model.delta:
        raise UserError("this config has no trained weights: give --workdir of a training run, or set model.delta")
    cfg = model_config(model, signals=signals)
    weights = fingerprints.weights(model, values.workdir, step, values.ema)
    data = pathlib.Path(values.data)
    run = prepare(task, data, config, output, limit=values.limit, seed=values.seed, weights=weights)
    make_engine = functools.partial(load_engine, config, values.workdir, step, values.ema)
    result = evaluate(run, cfg, make_engine, shard=shard, merge=values.merge)
    if result is None:
        print(f"shard {values.shard} is finished, others are not: the last one computes the figures")
        return
    print("\n".join(table(result)))
    print(output / "result.json")


def list_tasks() -> None:
    """Prints the tasks with the figures of the paper."""
    from nextgpt_jax.evaluation.tasks import TASKS

    width = max(map(len, TASKS), default=0)
    for name, task in TASKS.items():
        figures = ", ".join(f"{figure} {value:g}" for figure, value in task.paper.items())
        print(f"{name:<{width}}  {task.title}{f' (paper: {figures})' if figures else ''}")
        for file, source in task.layout.items():
            print(f"{'':<{width}}    {file}: {source}")
