"""DPM-Solver++ (2M), midpoint (Lu et al. 2022): an exponential integrator on the predicted clean samples."""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import (
    SchedulerOptions,
    clean_sample,
    karras,
    spaced_timesteps,
    timesteps_of,
    with_final,
)
from nextgpt_jax.models.diffusion.schedulers.table import HISTORY_SLOTS, StepCoefficients

SUPPORTED = {
    "algorithm_type": ("dpmsolver++",),
    "lambda_min_clipped": (None, -float("inf")),
    "solver_type": ("midpoint",),
    "use_beta_sigmas": (None, False),
    "use_dynamic_shifting": (None, False),
    "use_exponential_sigmas": (None, False),
    "use_flow_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
    "variance_type": (None,),
}


def coefficients(options: SchedulerOptions, steps: int) -> tuple[list[StepCoefficients], float]:
    """The coefficients of all evaluations, and the initial noise level, 1."""
    times, sigmas = _timesteps_and_sigmas(options, steps)
    signals = 1 / np.sqrt(sigmas**2 + 1)
    noises = sigmas * signals
    few_steps = options.lower_order_final and steps < 15
    rows = []
    for i, t in enumerate(times):
        from_sample, from_output = clean_sample(options.prediction_type, signals[i], noises[i])
        # With lambda = log(signal / noise) = -log(sigma) and h its increase, exp(-h) is the ratio of the sigmas.
        gain = signals[i + 1] * (1 - sigmas[i + 1] / sigmas[i])
        last = i == steps - 1
        first_order = options.solver_order == 1 or i == 0
        first_order |= last and (options.euler_at_final or few_steps or options.final_sigmas_type == "zero")
        # Second order extrapolates the clean sample by half a step along its last change.
        slope = 0.0 if first_order else 0.5 * np.log(sigmas[i] / sigmas[i + 1]) / np.log(sigmas[i - 1] / sigmas[i])
        rows.append(
            StepCoefficients(
                timestep=t,
                from_sample=from_sample,
                from_output=from_output,
                sample=noises[i + 1] / noises[i],
                current=gain * (1 + slope),
                history=(-gain * slope, *(0.0,) * (HISTORY_SLOTS - 1)),
                history_slot=0,
            )
        )
    return rows, 1.0


def _timesteps_and_sigmas(options: SchedulerOptions, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps [steps] and noise levels [steps + 1]."""
    n, spacing = options.num_train_timesteps, options.timestep_spacing or "linspace"
    training_sigmas = options.sigmas()
    if options.use_karras_sigmas:
        sigmas = karras(training_sigmas[-1], training_sigmas[0], steps)
        times = timesteps_of(sigmas, training_sigmas).round()
    else:
        # One more timestep than steps, of which the last is left out (not so for trailing).
        if spacing == "linspace":
            times = np.linspace(0, n - 1, steps + 1).round()[:0:-1]
        elif spacing == "leading":
            times = (np.arange(steps + 1) * (n // (steps + 1)))[:0:-1] + options.steps_offset
        else:
            times = spaced_timesteps(options, steps, default="trailing")
        sigmas = np.interp(times, np.arange(n), training_sigmas)
    return times, with_final(options, sigmas, training_sigmas)
