"""Euler's method on samples scaled by their noise (Karras et al. 2022)."""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import (
    SchedulerOptions,
    clean_sample,
    karras,
    spaced_timesteps,
    timesteps_of,
    with_final,
)
from nextgpt_jax.models.diffusion.schedulers.table import StepCoefficients

SUPPORTED = {
    "interpolation_type": ("linear",),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (None, False),
    "use_exponential_sigmas": (None, False),
}


def coefficients(options: SchedulerOptions, steps: int) -> tuple[list[StepCoefficients], float]:
    """The coefficients of all evaluations, and the initial noise level."""
    training_sigmas = options.sigmas()
    times = spaced_timesteps(options, steps, default="linspace", rounded=False)
    sigmas = np.interp(times, np.arange(len(training_sigmas)), training_sigmas)
    if options.use_karras_sigmas:
        sigmas = karras(sigmas[0], sigmas[-1], steps)
        times = timesteps_of(sigmas, training_sigmas)
    sigmas = with_final(options, sigmas, training_sigmas)
    rows = []
    for i, t in enumerate(times):
        sigma, delta = sigmas[i], sigmas[i + 1] - sigmas[i]
        scale = 1 / np.sqrt(sigma**2 + 1)
        # Samples here are x / signal, so the clean sample is predicted from the scaled-down sample.
        from_sample, from_output = clean_sample(options.prediction_type, scale, sigma * scale)
        rows.append(
            StepCoefficients(
                timestep=t,
                input_scale=scale,
                from_sample=from_sample * scale,
                from_output=from_output,
                sample=1 + delta / sigma,
                current=-delta / sigma,
            )
        )
    first = sigmas.max()
    return rows, np.sqrt(first**2 + 1) if options.timestep_spacing == "leading" else first
