"""Options that the samplers read, and the parts of a schedule that several samplers share."""

import dataclasses
from collections.abc import Callable

import numpy as np

from nextgpt_jax.errors import UserError

_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": (None, "leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """Noise schedule and options of the samplers. Fields as in the hub's scheduler_config.json.

    Fields of another sampler have no effect; None is the sampler's own default.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None  # leading for PNDM and DDIM, linspace for DPM-Solver++ and Euler
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None  # False for PNDM, True for DDIM
    skip_prk_steps: bool = False  # PNDM
    use_karras_sigmas: bool = False  # DPM-Solver++ and Euler
    final_sigmas_type: str = "zero"  # DPM-Solver++ and Euler
    solver_order: int = 2  # DPM-Solver++
    lower_order_final: bool = True  # DPM-Solver++
    euler_at_final: bool = False  # DPM-Solver++

    def __post_init__(self):
        for field, values in _CHOICES.items():
            check_choice(field, getattr(self, field), values)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start!r} and beta_end={self.beta_end!r} should rise between 0 and 1"
            )

    def alphas_cumprod(self) -> np.ndarray:
        """The fraction of signal left at each training timestep: [num_train_timesteps], float64."""
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        betas = np.linspace(self.beta_start**power, self.beta_end**power, self.num_train_timesteps) ** (1 / power)
        return np.cumprod(1.0 - betas)

    def sigmas(self) -> np.ndarray:
        """Noise relative to signal at each training timestep: [num_train_timesteps], float64."""
        alphas = self.alphas_cumprod()
        return np.sqrt((1 - alphas) / alphas)


def check_choice(field: str, value: object, choices: tuple) -> None:
    """Raises ValueError, naming the field and the choices, unless `value` is one of them."""
    if value not in choices:
        wanted = ", ".join(repr(v) for v in choices if v is not None)
        raise ValueError(f"{field}={value!r} is not supported (only {wanted})")


def spaced_timesteps(options: SchedulerOptions, steps: int, *, default: str, rounded: bool = True) -> np.ndarray:
    """Descending timesteps: [steps], float64. `rounded` False keeps fractions (Euler's linspace)."""
    n, spacing = options.num_train_timesteps, options.timestep_spacing or default
    if spacing == "linspace":
        t = np.linspace(0, n - 1, steps)[::-1]
        return t.round() if rounded else t
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (n // steps) + options.steps_offset
    return np.round(np.arange(n, 0, -n / steps))[:steps] - 1


def alpha_at(options: SchedulerOptions, *, to_one_by_default: bool) -> Callable[[float], float]:
    """alphas_cumprod as a function of the timestep, which may be negative: after the last training timestep."""
    alphas = options.alphas_cumprod()
    to_one = to_one_by_default if options.set_alpha_to_one is None else options.set_alpha_to_one
    final = 1.0 if to_one else alphas[0]

    def alpha(t: float) -> float:
        if t >= len(alphas):
            raise UserError(f"timestep {int(t)} is outside the schedule: steps_offset={options.steps_offset}")
        return alphas[int(t)] if t >= 0 else final

    return alpha


def clean_sample(prediction_type: str, signal: float, noise: float) -> tuple[float, float]:
    """Coefficients of (sample, model output) in the predicted clean sample, at the given levels of signal and noise."""
    if prediction_type == "epsilon":
        return 1.0 / signal, -noise / signal
    return (signal, -noise) if prediction_type == "v_prediction" else (0.0, 1.0)


def karras(first: float, last: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels from `first` down to `last` (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    return (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho


def timesteps_of(sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
    """Fractional timesteps whose noise levels are `sigmas`, interpolated in their logarithm."""
    return np.interp(np.log(sigmas), np.log(training_sigmas), np.arange(len(training_sigmas)))


def with_final(options: SchedulerOptions, sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
    """`sigmas` and the noise level after the last step."""
    return np.append(sigmas, 0.0 if options.final_sigmas_type == "zero" else training_sigmas[0])
