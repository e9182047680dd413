"""What is made of a run's state between steps: losses on held-out samples, answers to prompts, checkpoints."""

import math

import jax

from nextgpt_jax.errors import UserError
from nextgpt_jax.training.report import Report
from nextgpt_jax.training.sampling import Sampler
from nextgpt_jax.training.state import RunState
from nextgpt_jax.training.validation import Validation
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.run_steps import LOSS, VALIDATION


class Snapshots:
    """Validates, samples and saves the state of a run.

    Attributes:
      saved: the step that was saved last, or where the run went on.
    """

    def __init__(
        self, run: Workdir, state: RunState, report: Report, validation: Validation | None, sampler: Sampler | None
    ):
        self._run, self._state, self._report, self._validation = run, state, report, validation
        self._sampler = sampler
        self._validated: dict[int, float] = {}  # loss by step
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

    def save(self) -> None:
        """Validates, and starts to save a checkpoint.

        Raises:
          UserError: the last loss is not finite: a good checkpoint is never replaced.
        """
        state = self._state
        names = ("loss", "grad_norm")
        last = {name: float(value) for name, value in jax.device_get({n: state.metrics[n] for n in names}).items()}
        check_finite(state.step, last)
        self.validate()
        with self._report.paused():
            losses = {LOSS: last["loss"]}
            if state.step in self._validated:
                losses[VALIDATION] = self._validated[state.step]
            state.save(self._run, losses)
        self.saved = state.step


def check_finite(step: int, metrics: dict[str, float]) -> None:
    """Raises UserError if the loss or the gradient is not finite."""
    if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
        raise UserError(f"the loss is not finite at step {step}: lower optim.lr or optim.grad_clip_norm")
