"""DDIM with eta 0 (Song et al. 2021, eq. 12)."""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions, alpha_at, clean_sample
from nextgpt_jax.models.diffusion.schedulers.spacing import spaced_timesteps
from nextgpt_jax.models.diffusion.schedulers.table import StepCoefficients

SUPPORTED = {"clip_sample": (False,)}  # of pixels, which latents are not


def check(options: SchedulerOptions) -> None:
    """Every value of the options that this sampler has is supported."""


def coefficients(options: SchedulerOptions, steps: int) -> tuple[list[StepCoefficients], float]:
    """Clean sample and noise from the prediction, mixed at the previous noise level; and the initial noise level, 1."""
    alpha = alpha_at(options, to_one_by_default=True)
    rows = []
    for t in spaced_timesteps(options, steps, default="leading"):
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
    return rows, 1.0
