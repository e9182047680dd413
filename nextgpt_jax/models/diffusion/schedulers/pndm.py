"""PNDM (Liu et al. 2022): Runge-Kutta start (or none) and the linear multistep formula.

As in diffusers, the raw predictions are combined; velocities are converted to noise afterwards.
"""

from collections.abc import Sequence

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions, alpha_at, vp_levels
from nextgpt_jax.models.diffusion.schedulers.spacing import spaced_timesteps
from nextgpt_jax.models.diffusion.schedulers.table import HISTORY_SLOTS, SCRATCH_SLOT, Run, StepCoefficients

SUPPORTED: dict[str, tuple] = {}

_NEWEST = (1.0, *(0.0,) * HISTORY_SLOTS)
# Weights of the current output and of those before it, newest first, by the number of earlier outputs.
_MULTISTEP = (
    (1.0, ()),
    (3 / 2, (-1 / 2,)),
    (23 / 12, (-16 / 12, 5 / 12)),
    (55 / 24, (-59 / 24, 37 / 24, -9 / 24)),
)


def check(options: SchedulerOptions) -> None:
    """Raises ValueError for options that this sampler does not have."""
    if options.prediction_type == "sample":
        raise ValueError("PNDM has no prediction_type='sample'")
    if options.rescale_betas_zero_snr:
        raise ValueError("PNDM has no rescale_betas_zero_snr=True")


class _Steps:
    """The steps so far, each from one timestep to another along a weighted sum of outputs."""

    def __init__(self, options: SchedulerOptions):
        self.rows: list[StepCoefficients] = []
        self.alpha = alpha_at(options, to_one_by_default=False)
        self._velocity = options.prediction_type == "v_prediction"

    def add(
        self,
        t: float,
        start: float,
        end: float,
        weights: Sequence[float],
        *,
        from_anchor: bool = False,
        set_anchor: bool = False,
        slot: int = SCRATCH_SLOT,
        keep: float = 0.0,
    ) -> None:
        """Moves the sample (or the anchor) from `start` to `end` along weights = (current output, history slots)."""
        a, b = self.alpha(start), self.alpha(end)
        of_output = -(b - a) / (a * np.sqrt(1 - b) + np.sqrt(a * (1 - a) * b))
        of_sample = np.sqrt(b / a)
        if self._velocity:
            of_sample += of_output * np.sqrt(1 - a)
            of_output *= np.sqrt(a)
        current, *history = (w * of_output for w in weights)
        origin = {"anchor": of_sample} if from_anchor else {"sample": of_sample}
        row = StepCoefficients(
            timestep=t,
            **origin,
            current=current,
            history=tuple(history),
            history_slot=slot,
            history_keep=keep,
            set_anchor=float(set_anchor),
        )
        self.rows.append(row)


def coefficients(options: SchedulerOptions, steps: int, first: int = 0) -> Run:
    """The run of `steps` (it has more evaluations) from evaluation `first` on; the initial noise level is 1.

    Raises UserError for fewer than 4 steps with a Runge-Kutta start, or for one that is not the start.
    """
    if not options.skip_prk_steps and first:
        raise UserError("PNDM with Runge-Kutta steps can't begin from a noised sample: take another sampler")
    if not options.skip_prk_steps and steps < 4:
        raise UserError(f"PNDM with Runge-Kutta steps needs at least 4 steps, got {steps}")
    stride = options.num_train_timesteps // steps
    times = spaced_timesteps(options, steps, default="leading")
    made = _Steps(options)
    if options.skip_prk_steps:
        # The first step is taken twice: the second time from its starting point, with the mean of both outputs. Only a
        # whole run has a timestep for that; one that begins later leaves out a step, as in diffusers.
        times = np.array([*times[:2], *times[1:]])[first:]
        made.add(times[0], times[0], times[0] - stride, _weights(1.0, (), 0), set_anchor=True, slot=0)
        if len(times) > 1:
            t = times[1]
            made.add(t, t + stride, t, _weights(1 / 2, (1 / 2,), 1), from_anchor=True)
        rest, outputs = times[2:], 1
    else:
        for block in range(3):
            _runge_kutta(made, block, times[block], times[block + 1], stride // 2)
        rest, outputs = times[3:], 3
    for t in rest:
        current, history = _MULTISTEP[min(outputs, 3)]
        made.add(t, t, t - stride, _weights(current, history, outputs), slot=outputs % 3)
        outputs += 1
    return Run(made.rows, 1.0, vp_levels(made.alpha(times[0])))


def _runge_kutta(made: _Steps, block: int, start: float, end: float, half: int) -> None:
    """Four evaluations for one step; each stage starts from the block's first sample."""
    first = [1.0 if s == block else 0.0 for s in range(3)]  # the history slot of this block's first output
    made.add(start, start, start - half, _NEWEST, set_anchor=True, slot=block)
    made.add(end + half, start, end + half, _NEWEST, from_anchor=True)
    made.add(end + half, start, end, _NEWEST, from_anchor=True, keep=1.0)
    made.add(end, start, end, (1 / 6, *(f / 6 for f in first), 1 / 3), from_anchor=True)


def _weights(current: float, history: Sequence[float], outputs: int) -> tuple[float, ...]:
    """Weights by history slot, from weights newest first; output k is in slot k % 3."""
    slots = [0.0] * HISTORY_SLOTS
    for age, weight in enumerate(history, 1):
        slots[(outputs - age) % 3] = weight
    return (current, *slots)
