"""Evaluations of a model while it is trained: a small subset of a task, always the same, with the same seeds."""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Sequence

from flax import nnx

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.evaluation.measuring import measure
from nextgpt_jax.evaluation.results import make_result, write_result
from nextgpt_jax.evaluation.run import Run, answer, check_options, options_of, prepare
from nextgpt_jax.evaluation.tasks import find_task
from nextgpt_jax.evaluation.types import Metric, Outcome
from nextgpt_jax.files import is_remote, local_folder
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.types import MediaOutput, Response
from nextgpt_jax.training.evaluating import Evaluator, Found
from nextgpt_jax.weights.load import LoadedModel

_SHOWN = 8  # answers that are shown, the first ones


class TrainingEvaluation:
    """An evaluation of the task that a config names; for `training.loop.train(evaluation=...)`.

    Attributes:
      needs_decoders: whether answers have media.
    """

    def __init__(self, config: ExperimentConfig):
        """
        Raises:
          UserError: there is no such task, or its data or the weights of its metrics are missing.
        """
        task = find_task(config.eval.task)
        options = {"limit": config.eval.limit, "seed": config.train.seed, "source": config.eval.task}
        self._run = prepare(task, pathlib.Path(config.eval.data), config, pathlib.Path(), **options)
        self._metrics = task.metrics(self._run.samples, config.eval)
        modalities = {options_of(self._run, sample).get("modality", "auto") for sample in self._run.samples}
        self.needs_decoders = modalities != {"text"}

    def begin(self, loaded: LoadedModel, folder: pathlib.Path) -> Evaluator:
        """An evaluator that writes the results of each step to FOLDER/STEP, as `nextgpt evaluate` does.

        Raises:
          UserError: the model cannot do the task.
        """
        check_options(self._run, loaded.model.config)

        def evaluator(step: int, graphdef: nnx.GraphDef, trainable: nnx.State, frozen: nnx.State) -> Found:
            mesh = loaded.mesh if loaded.mesh and loaded.mesh.size > 1 else None
            system = dataclasses.replace(loaded, model=nnx.merge(graphdef, trainable, frozen), mesh=mesh)
            engine = Engine(system, self._run.config.generation, keep_stacked=True)
            place = folder / str(step)
            if not is_remote(place):  # what an earlier process answered was with other weights
                shutil.rmtree(place, ignore_errors=True)
            with local_folder(place) as target:
                run = dataclasses.replace(self._run, folder=target, weights={"step": str(step)})
                return _evaluate(run, self._metrics, engine)

        return evaluator


def _evaluate(run: Run, metrics: Sequence[Metric], engine: Engine) -> Found:
    media: dict[int, list[MediaOutput]] = {}

    def keep(index: int, response: Response) -> None:
        if index < _SHOWN:
            media[index] = response.media

    answers = answer(run, engine.config, lambda: engine, on_response=keep)

    def outcome(index: int) -> Outcome:
        return answers.outcome(index, run.samples[index])

    measured = measure(metrics, len(run), outcome, run.folder)
    write_result(run, make_result(run, measured, answers))
    rows = [
        (name, value, one.metric) for one in measured for name, value in one.figures.items() if math.isfinite(value)
    ]
    unanswered = [f"{run.samples[i].id}: {error}" for i, error in answers.errors().items()]
    return Found(
        figures={name: value for name, value, _ in rows},
        lower_is_better={name: not metric.higher_is_better for name, _, metric in rows},
        problems=[*(f"{one.metric.name}: {one.error}" for one in measured if one.error), *unanswered[:1]],
        answers=[(run.samples[i].prompt, outcome(i).text, media.get(i, [])) for i in range(min(_SHOWN, len(run)))],
    )
