"""DDIM with eta 0 (Song et al. 2021, eq. 12), and its inversion."""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import (
    SchedulerOptions,
    alpha_at,
    check_choice,
    clean_sample,
    pure_noise,
    vp_levels,
)
from nextgpt_jax.models.diffusion.schedulers.spacing import spaced_timesteps
from nextgpt_jax.models.diffusion.schedulers.table import Run, StepCoefficients

SUPPORTED = {"clip_sample": (False,)}  # of pixels, which latents are not


def check(options: SchedulerOptions) -> None:
    """Every value of the options that this sampler has is supported."""


def coefficients(options: SchedulerOptions, steps: int, first: int = 0) -> Run:
    """Clean sample and noise from the prediction, mixed at the previous noise level; from evaluation `first` on."""
    alpha = alpha_at(options, to_one_by_default=True)
    times = spaced_timesteps(options, steps, default="leading")[first:]
    rows = []
    for t in times:
        a, previous = alpha(t), alpha(t - options.num_train_timesteps // steps)
        from_sample, from_output = clean_sample(options.prediction_type, np.sqrt(a), np.sqrt(1 - a))
        # noise = (x - sqrt(a) clean) / sqrt(1 - a)
        noise = np.sqrt((1 - previous) / (1 - a))
        rows.append(
            StepCoefficients(
                timestep=t,
                from_sample=from_sample,
                from_output=from_output,
                sample=noise,
                current=np.sqrt(previous) - noise * np.sqrt(a),
            )
        )
    return Run(rows, 1.0, vp_levels(alpha(times[0])))


def inversion(options: SchedulerOptions, steps: int, count: int) -> list[StepCoefficients]:
    """The first `count` of `steps` from a clean sample to noise: DDIM's step, with the output at its end.

    Raises ValueError for a timestep_spacing that diffusers' DDIMInverseScheduler does not have.
    """
    check_choice("timestep_spacing", options.timestep_spacing, (None, "leading", "trailing"))
    alpha = alpha_at(options, to_one_by_default=True)
    rows = []
    for t in spaced_timesteps(options, steps, default="leading")[::-1][:count]:
        (signal, noise), (next_signal, next_noise) = (
            vp_levels(a) for a in (alpha(t - options.num_train_timesteps // steps), alpha(t))
        )
        clean = np.array(clean_sample(options.prediction_type, signal, noise))
        added = np.array(pure_noise(options.prediction_type, signal, noise))
        sample, current = next_signal * clean + next_noise * added
        rows.append(StepCoefficients(timestep=t, sample=sample, current=current))
    return rows
