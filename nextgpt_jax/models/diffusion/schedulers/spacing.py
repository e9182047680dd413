"""Timesteps and noise levels of a sampling run."""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions

_RESPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_ROUNDING = 1e-3  # timesteps this close below a whole number are that number


def spaced_timesteps(options: SchedulerOptions, steps: int, *, default: str, rounded: bool = True) -> np.ndarray:
    """Descending timesteps: [steps], float64. `rounded` False keeps fractions (Euler's linspace)."""
    n, spacing = options.num_train_timesteps, options.timestep_spacing or default
    if spacing == "linspace":
        t = np.linspace(0, n - 1, steps)[::-1]
        return t.round() if rounded else t
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (n // steps) + options.steps_offset
    return np.round(np.arange(n, 0, -n / steps))[:steps] - 1


def multistep_schedule(
    options: SchedulerOptions, steps: int, *, end: int, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and noise levels of DPM-Solver++ and UniPC: [steps], fewer with trailing spacing and an early end.

    Args:
      end: training timesteps that are used.
      whole: round the timesteps of Karras' noise levels; else their fractions are dropped.
    """
    n, spacing = options.num_train_timesteps, options.timestep_spacing or "linspace"
    training_sigmas = options.sigmas()
    if respaced(options):
        sigmas = respace(options, training_sigmas[-1], training_sigmas[0], steps)
        times = timesteps_of(sigmas, training_sigmas)
        return whole_timesteps(times, rounded=whole and options.use_karras_sigmas), sigmas
    # One more timestep than steps, of which the last is left out (not so for trailing).
    if spacing == "linspace":
        times = np.linspace(0, end - 1, steps + 1).round()[:0:-1]
    elif spacing == "leading":
        times = (np.arange(steps + 1) * (end // (steps + 1)))[:0:-1] + options.steps_offset
    else:
        times = np.round(np.arange(end, 0, -n / steps))[:steps] - 1
    return times, np.interp(times, np.arange(n), training_sigmas)


def whole_timesteps(times: np.ndarray, *, rounded: bool) -> np.ndarray:
    """Fractional timesteps rounded, or without their fractions."""
    return times.round() if rounded else np.floor(times + _ROUNDING)


def respaced(options: SchedulerOptions) -> bool:
    """Whether the noise levels of a run are spaced by themselves, not by timesteps."""
    return any(getattr(options, name) for name in _RESPACINGS)


def check_respacing(options: SchedulerOptions) -> None:
    """Raises ValueError for more than one way to space noise levels."""
    if len(given := [name for name in _RESPACINGS if getattr(options, name)]) > 1:
        raise ValueError(f"only one of {', '.join(given)} can be true")


def respace(options: SchedulerOptions, first: float, last: float, steps: int) -> np.ndarray:
    """Noise levels from `first` down to `last`, unless the options say other ends: [steps]."""
    first = options.sigma_max if options.sigma_max is not None else first
    last = options.sigma_min if options.sigma_min is not None else last
    if options.use_karras_sigmas:
        return _karras(first, last, steps)
    if options.use_exponential_sigmas:
        return exponential(first, last, steps)
    from scipy.special import betaincinv  # a quarter of a second, at the start of everything

    return last + (first - last) * betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, steps))  # Lee et al. 2024


def _karras(first: float, last: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels from `first` down to `last` (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    return (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho


def exponential(first: float, last: float, steps: int) -> np.ndarray:
    """Noise levels from `first` down to `last`, evenly spaced in their logarithm."""
    return np.exp(np.linspace(np.log(first), np.log(last), steps))


def timesteps_of(sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
    """Fractional timesteps whose noise levels are `sigmas`, interpolated in their logarithm.

    Of several, the last: rescaled to zero SNR, the last level of training may be below the one before it.
    """
    levels, wanted = np.log(training_sigmas), np.log(sigmas)
    below = (levels[:, None] <= wanted) * np.arange(len(levels))[:, None]  # [training timesteps, steps]
    low = np.minimum(below.max(axis=0), len(levels) - 2)
    return low + np.clip((wanted - levels[low]) / (levels[low + 1] - levels[low]), 0, 1)


def with_final(options: SchedulerOptions, sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
    """`sigmas` and the noise level after the last step."""
    return np.append(sigmas, 0.0 if options.final_sigmas_type == "zero" else training_sigmas[0])
