"""Evaluations during training: what the loop asks of one, which is made above training (cli/train.py)."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
from flax import nnx

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.inference.types import MediaOutput
from nextgpt_jax.weights.load import LoadedModel


class Found(NamedTuple):
    """What an evaluation found.

    Attributes:
      figures: by name, of those that could be computed.
      lower_is_better: by the same names.
      problems: why others could not be computed, in lines.
      answers: prompts, texts and media of a few samples.
    """

    figures: Mapping[str, float]
    lower_is_better: Mapping[str, bool]
    problems: Sequence[str]
    answers: Sequence[tuple[str, str, list[MediaOutput]]]


Evaluator = Callable[[int, nnx.GraphDef, nnx.State, nnx.State], Found]  # of (step, graphdef, trainable, frozen)


class Evaluation(Protocol):
    """An evaluation of a config (eval.task), whose data are there.

    Attributes:
      needs_decoders: whether answers have media.
    """

    needs_decoders: bool

    def begin(self, loaded: LoadedModel, folder: pathlib.Path) -> Evaluator:
        """An evaluator of the model `loaded`, which writes below `folder`.

        Raises:
          UserError: the model cannot do the task.
        """
        ...


def check_evaluation(config: ExperimentConfig, evaluation: Evaluation | None) -> None:
    """Checks the settings of evaluations before anything is loaded.

    Raises:
      UserError: a setting is missing or out of range, or this job cannot evaluate.
    """
    settings = config.eval
    if settings.every < 0:
        raise UserError("eval.every should not be negative; 0: no evaluations")
    if not settings.every:
        if settings.best:
            raise UserError("eval.best chooses checkpoints by an evaluation: set eval.every and eval.task")
        return
    if not settings.task:
        raise UserError("eval.every needs eval.task: a name that nextgpt evaluate --list has, or a file")
    if settings.limit < 1:
        raise UserError(f"eval.limit is {settings.limit}: give at least 1 sample")
    if jax.process_count() > 1:
        raise UserError(
            f"eval.every: a job of {jax.process_count()} processes evaluates nothing: set it to 0, and evaluate the "
            "checkpoints with nextgpt evaluate --workdir"
        )
    if evaluation is None:
        raise UserError(
            "eval.every: use nextgpt train, or train(..., evaluation=TrainingEvaluation(config)) of "
            "nextgpt_jax.evaluation.during_training"
        )


def chosen_figure(found: Found, name: str) -> float | None:
    """The figure eval.best, by which checkpoints are ordered, negative if a higher one is better; None: it could not be
    computed.

    Raises:
      UserError: the task has no such figure.
    """
    if name in found.figures:
        value = found.figures[name]
        return value if found.lower_is_better[name] else -value
    if found.problems:  # it may be among those
        return None
    known = list(found.figures)
    raise UserError(f"eval.best: the task has no figure {name!r} (there are {', '.join(known)}){nearest(name, known)}")
