"""What is made of a run's state between steps: losses on held-out samples, answers to prompts, checkpoints."""

import math

import jax

from nextgpt_jax.errors import UserError
from nextgpt_jax.training.evaluating import Evaluator, Found, chosen_figure
from nextgpt_jax.training.report import Report
from nextgpt_jax.training.sampling import Sampler
from nextgpt_jax.training.state import RunState
from nextgpt_jax.training.validation import Validation
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.run_steps import LOSS, SCORE, VALIDATION


class Snapshots:
    """Validates, samples, evaluates and saves the state of a run.

    Attributes:
      saved: the step that was saved last, or where the run went on.
    """

    def __init__(
        self,
        run: Workdir,
        state: RunState,
        report: Report,
        validation: Validation | None,
        sampler: Sampler | None,
        evaluator: Evaluator | None = None,
        best: str = "",
    ):
        """
        Args:
          best: the figure of `evaluator` by which checkpoints are ordered; "": by their losses.
        """
        self._run, self._state, self._report, self._validation = run, state, report, validation
        self._sampler, self._evaluator, self._best = sampler, evaluator, best
        self._validated: dict[int, float] = {}  # loss by step
        self._scores: dict[int, float | None] = {}  # the figure by step, lower is better
        self.saved = state.step

    def validate(self) -> None:
        """Computes the losses on the held-out samples, if there are any, once a step."""
        state = self._state
        if self._validation is None or state.step in self._validated:
            return
        jax.block_until_ready(state.trainable)  # the steps so far count as such
        with self._report.paused():
            found = self._validation(state.evaluated, state.frozen)
        self._validated[state.step] = found[VALIDATION]
        self._report.validation(state.step, found)

    def sample(self) -> None:
        """Answers the prompts, if there are any."""
        state = self._state
        if self._sampler is None:
            return
        jax.block_until_ready(state.trainable)
        with self._report.paused():
            found = self._sampler(state.step, state.graphdef, state.evaluated, state.frozen)
            self._report.samples(state.step, found)

    def evaluate(self, *, shown: bool = True) -> None:
        """Evaluates, if a task is set, once a step.

        Args:
          shown: False: of a step that an earlier process has shown.

        Raises:
          UserError: the task has no figure of the name by which checkpoints are ordered.
        """
        state = self._state
        if self._evaluator is None or state.step in self._scores:
            return
        jax.block_until_ready(state.trainable)
        with self._report.paused():
            found: Found = self._evaluator(state.step, state.graphdef, state.evaluated, state.frozen)
            self._scores[state.step] = chosen_figure(found, self._best) if self._best else None
            if shown:
                self._report.evaluation(state.step, found)

    def save(self) -> None:
        """Validates, evaluates if that orders checkpoints, and starts to save a checkpoint.

        Raises:
          UserError: the last loss is not finite: a good checkpoint is never replaced.
        """
        state = self._state
        names = ("loss", "grad_norm")
        last = {name: float(value) for name, value in jax.device_get({n: state.metrics[n] for n in names}).items()}
        check_finite(state.step, last)
        self.validate()
        if self._best:
            self.evaluate()
        with self._report.paused():
            losses = {LOSS: last["loss"]}
            if state.step in self._validated:
                losses[VALIDATION] = self._validated[state.step]
            if (score := self._scores.get(state.step)) is not None:
                losses[SCORE] = score
            state.save(self._run, losses)
        self.saved = state.step


def check_finite(step: int, metrics: dict[str, float]) -> None:
    """Raises UserError if the loss or the gradient is not finite."""
    if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
        raise UserError(f"the loss is not finite at step {step}: lower optim.lr or optim.grad_clip_norm")
