"""Euler's method on samples scaled by their noise (Karras et al. 2022), and ancestral sampling with its steps."""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions, clean_sample
from nextgpt_jax.models.diffusion.schedulers.spacing import (
    check_respacing,
    respace,
    respaced,
    spaced_timesteps,
    timesteps_of,
    with_final,
)
from nextgpt_jax.models.diffusion.schedulers.table import Run, StepCoefficients

SUPPORTED = {"interpolation_type": ("linear",), "timestep_type": ("discrete",)}
ANCESTRAL_SUPPORTED: dict[str, tuple] = {}


def check(options: SchedulerOptions) -> None:
    """Raises ValueError for options that exclude each other."""
    check_respacing(options)


def check_ancestral(options: SchedulerOptions) -> None:
    """Raises ValueError for options that ancestral sampling does not have."""
    if options.prediction_type == "sample":
        raise ValueError("ancestral Euler has no prediction_type='sample'")


def coefficients(options: SchedulerOptions, steps: int, first: int = 0) -> Run:
    """The run of `steps` from evaluation `first` on."""
    training_sigmas = options.sigmas()
    times, sigmas = _timesteps_and_sigmas(options, training_sigmas, steps)
    if respaced(options):
        sigmas = respace(options, sigmas[0], sigmas[-1], steps)
        times = timesteps_of(sigmas, training_sigmas)
    sigmas = with_final(options, sigmas, training_sigmas)
    rows = [_row(options, t, sigmas[i], sigmas[i + 1]) for i, t in enumerate(times)]
    return _run(options, rows, sigmas, first)


def ancestral_coefficients(options: SchedulerOptions, steps: int, first: int = 0) -> Run:
    """The same of ancestral sampling: each step goes below the next noise level and adds the noise that is missing."""
    times, sigmas = _timesteps_and_sigmas(options, options.sigmas(), steps)
    sigmas = np.append(sigmas, 0.0)
    rows = []
    for i, t in enumerate(times):
        up = np.sqrt(sigmas[i + 1] ** 2 * (sigmas[i] ** 2 - sigmas[i + 1] ** 2) / sigmas[i] ** 2)
        rows.append(_row(options, t, sigmas[i], np.sqrt(sigmas[i + 1] ** 2 - up**2), noise=up))
    return _run(options, rows, sigmas, first)


def _timesteps_and_sigmas(
    options: SchedulerOptions, training_sigmas: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    times = spaced_timesteps(options, steps, default="linspace", rounded=False)
    return times, np.interp(times, np.arange(len(training_sigmas)), training_sigmas)


def _row(
    options: SchedulerOptions, t: float, sigma: float, end: float, *, noise: float | None = None
) -> StepCoefficients:
    """A step from noise level `sigma` to `end`."""
    delta = end - sigma
    scale = 1 / np.sqrt(sigma**2 + 1)
    # Samples here are x / signal, so the clean sample is predicted from the scaled-down sample.
    from_sample, from_output = clean_sample(options.prediction_type, scale, sigma * scale)
    return StepCoefficients(
        timestep=t,
        input_scale=scale,
        from_sample=from_sample * scale,
        from_output=from_output,
        sample=1 + delta / sigma,
        current=-delta / sigma,
        noise=noise,
    )


def _run(options: SchedulerOptions, rows: list[StepCoefficients], sigmas: np.ndarray, first: int) -> Run:
    highest = sigmas.max()
    initial = np.sqrt(highest**2 + 1) if options.timestep_spacing == "leading" else highest
    return Run(rows[first:], initial, (1.0, sigmas[first]))
