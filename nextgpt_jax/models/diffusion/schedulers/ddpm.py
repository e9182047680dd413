"""DDPM (Ho et al. 2020): every step draws from the posterior of the previous sample given the predicted clean one."""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import (
    SchedulerOptions,
    alpha_at,
    check_choice,
    clean_sample,
    vp_levels,
)
from nextgpt_jax.models.diffusion.schedulers.spacing import spaced_timesteps
from nextgpt_jax.models.diffusion.schedulers.table import Run, StepCoefficients

SUPPORTED = {"clip_sample": (False,)}  # of pixels, which latents are not

_SMALL = (None, "fixed_small", "fixed_small_log")  # of the posterior; the logarithm changes nothing
_MIN_VARIANCE = 1e-20


def check(options: SchedulerOptions) -> None:
    """Raises ValueError for options that this sampler has but that are not supported."""
    check_choice("variance_type", options.variance_type, (*_SMALL, "fixed_large"))


def coefficients(options: SchedulerOptions, steps: int, first: int = 0) -> Run:
    """The run of `steps` from evaluation `first` on; the initial noise level is 1."""
    alpha = alpha_at(options, to_one_by_default=True)
    times = spaced_timesteps(options, steps, default="leading")
    rows = []
    for t, following in zip(times[first:], [*times[first + 1 :], -1.0], strict=True):
        a, previous = alpha(t), alpha(following) if following >= 0 else 1.0
        step_alpha = a / previous
        from_sample, from_output = clean_sample(options.prediction_type, np.sqrt(a), np.sqrt(1 - a))
        variance = max((1 - previous) / (1 - a) * (1 - step_alpha), _MIN_VARIANCE)
        if options.variance_type == "fixed_large":
            variance = 1 - step_alpha
        rows.append(
            StepCoefficients(
                timestep=t,
                from_sample=from_sample,
                from_output=from_output,
                sample=np.sqrt(step_alpha) * (1 - previous) / (1 - a),
                current=np.sqrt(previous) * (1 - step_alpha) / (1 - a),
                noise=np.sqrt(variance) if t > 0 else 0.0,
            )
        )
    return Run(rows, 1.0, vp_levels(alpha(times[first])))
