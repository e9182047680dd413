"""The command `nextgpt evaluate`: a table of the paper by one command."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from nextgpt_jax.cli.flags import configure_jax, parse_flags, parse_shard
from nextgpt_jax.config import EvalConfig, field_names
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import check_folder
from nextgpt_jax.weights.run_steps import parse_step

if TYPE_CHECKING:  # imported where they are used: a typo in a flag should not wait for jax
    from nextgpt_jax.evaluation.choosing import Shard
    from nextgpt_jax.evaluation.types import Metric, Task

USAGE = """{program} TASK --config=CONFIG --data=DIR [options]
{program} --list
{program} --compare RUN RUN [options]    ({program} --compare --help lists them)

Answers the samples of a task and computes its figures. The same command continues an interrupted run. TASK is a name
of --list, or a file that defines tasks. Options of TASK:"""
COMPARE_USAGE = """{program} --compare RUN RUN [options]

The differences of the figures of two runs, folders or their result.json, with intervals by a paired bootstrap over the
samples that both have. --config=CONFIG gives other paths of feature networks (config.eval) than those of the first run.
Options:"""


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
    define("string", "shard", "0/1", "i/n: this is process number i (from 0) of n that share the folder of the run")
    define("boolean", "merge", False, "answer nothing: compute the figures of what all shards have answered")


def _define_compare(values: flags.FlagValues) -> None:
    flags.DEFINE_string("data", None, "folder of the dataset; default: that of the first run", flag_values=values)
    flags.DEFINE_integer("resamples", None, "resamples; default: 1000, of expensive figures 30", 2, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the resamples", 0, flag_values=values)
    flags.DEFINE_string("output", "", "file for the comparison as JSON", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and evaluates. Raises UserError for what the user can mend."""
    program, *arguments = argv
    if "--list" in arguments:
        if arguments != ["--list"]:
            raise UserError("--list stands alone")
        return list_tasks()
    if any(argument.split("=")[0] == "--compare" for argument in arguments):
        return compare(program, arguments)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    values = parse_flags([program, *arguments], _define, USAGE)
    if not name:
        raise UserError("which task? nextgpt evaluate TASK --config=... --data=DIR; nextgpt evaluate --list lists them")
    step = parse_step(values.step, "--step")
    if not values.workdir and (values.ema is not None or values["step"].present):
        raise UserError("--step, --ema and --noema choose weights of --workdir")
    from nextgpt_jax.evaluation.choosing import Shard

    shard = Shard(*parse_shard(values.shard))
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
    path, colon, inner = name.partition(":")
    source = os.path.abspath(path) + colon + inner if os.path.isfile(path) else name
    evaluate(values, task, source, output, step, shard)


def evaluate(
    values: flags.FlagValues, task: "Task", source: str, output: pathlib.Path, step: str | int, shard: "Shard"
) -> None:
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
    options = {"limit": values.limit, "seed": values.seed, "source": source}
    run = prepare(task, pathlib.Path(values.data), config, output, **options)
    run = dataclasses.replace(run, weights=fingerprints.weights(model, values.workdir, step, values.ema))
    make_engine = functools.partial(load_engine, config, values.workdir, step, values.ema)
    result = evaluate(run, cfg, make_engine, shard=shard, merge=values.merge)
    if result is None:
        print(f"shard {values.shard} is finished, others are not: the last one computes the figures")
        return
    if task.table:
        figures = {one["name"]: one["value"] for one in result["figures"] if one["value"] is not None}
        print("\n".join(task.table(figures, run.samples)))
    print("\n".join(table(result)))
    print(f"{output / 'result.json'}\n{output / 'report.html'}")


def list_tasks() -> None:
    """Prints the tasks with the figures of the paper."""
    from nextgpt_jax.evaluation.tasks import TASKS, task_names

    width = max(map(len, task_names()), default=0)
    for name, task in TASKS.items():
        figures = ", ".join(f"{figure} {value:g}" for figure, value in task.paper.items())
        print(f"{name:<{width}}  {task.title}{f' (paper: {figures})' if figures else ''}")
        for file, source in task.layout.items():
            print(f"{'':<{width}}    {file}: {source}")
    for name in task_names():
        if name not in TASKS:  # they may need more than the package
            print(f"{name:<{width}}  the tasks of examples/{name}")


def compare(program: str, arguments: Sequence[str]) -> None:
    """Compares two runs and prints the differences. Raises UserError for what the user can mend."""
    runs, rest, following = [], [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag == "--compare":
            runs += [value] if equals else []
            following = True
        elif following and not argument.startswith("-"):
            runs.append(argument)
        else:
            rest.append(argument)
    with_config = any(argument.split("=")[0] == "--config" for argument in rest)
    values = parse_flags([program, *rest], _define_compare, COMPARE_USAGE, config=with_config)
    if len(runs) != 2:
        raise UserError("--compare RUN RUN: give two folders of runs, or their result.json")
    if values.output and pathlib.Path(values.output).is_dir():
        raise UserError(f"--output: {values.output} is a folder: give a file")
    from nextgpt_jax.evaluation.compare import Side, lines, to_json
    from nextgpt_jax.evaluation.compare import compare as compare_sides
    from nextgpt_jax.evaluation.tasks import find_task
    from nextgpt_jax.files import atomic_write

    configure_jax()
    a, b = map(Side.read, runs)
    task = find_task(a.result["source"])
    recorded = {name: value for name, value in a.result["config"]["eval"].items() if name in field_names(EvalConfig)}
    settings = values.config.eval if with_config else EvalConfig(**recorded)
    data = pathlib.Path(a.result["data"] if values.data is None else values.data)
    samples = {sample.id: sample for sample in task.load(data)}

    def make_metrics(ids: Sequence[str]) -> "Sequence[Metric]":
        if lost := [id for id in ids if id not in samples]:
            raise UserError(f"{data} lacks samples of the runs, such as {lost[0]!r}: give their --data")
        return task.metrics([samples[id] for id in ids], settings)

    found = compare_sides(a, b, make_metrics, resamples=values.resamples, seed=values.seed)
    print("\n".join(lines(found)))
    if values.output:
        with atomic_write(values.output) as temporary:
            temporary.write_text(to_json(found), encoding="utf-8")
