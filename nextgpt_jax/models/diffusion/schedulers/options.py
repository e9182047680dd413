"""Options that the samplers read, and the noise schedule that they define."""

import dataclasses
from collections.abc import Callable

import numpy as np

from nextgpt_jax.errors import UserError

_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": (None, "leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 3),
}
_LAST_SIGNAL = 2.0**-24  # in place of 0 where a noise level relative to the signal has to be finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """Noise schedule and options of the samplers. Fields as in the hub's scheduler_config.json.

    Fields of another sampler have no effect; None is the sampler's own default.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    rescale_betas_zero_snr: bool = False  # not PNDM: the last training timestep is noise alone
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None  # leading for PNDM, DDIM and DDPM, linspace for the others
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None  # False for PNDM, True for DDIM
    skip_prk_steps: bool = False  # PNDM
    variance_type: str | None = None  # DDPM: fixed_small (the default) or fixed_large
    # DPM-Solver++, UniPC and Euler:
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None  # ends of the noise levels of the three above; None: those of training
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    # DPM-Solver++ and UniPC:
    solver_order: int = 2
    solver_type: str | None = None  # midpoint or heun (DPM-Solver++), bh2 or bh1 (UniPC); the first is the default
    lower_order_final: bool = True
    # DPM-Solver++:
    algorithm_type: str = "dpmsolver++"  # or dpmsolver, sde-dpmsolver++, sde-dpmsolver
    euler_at_final: bool = False
    use_lu_lambdas: bool = False
    lambda_min_clipped: float | None = None
    # UniPC:
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()  # after these steps

    def __post_init__(self):
        for field, values in _CHOICES.items():
            check_choice(field, getattr(self, field), values)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start!r} and beta_end={self.beta_end!r} should rise between 0 and 1"
            )
        if any(sigma is not None and sigma <= 0 for sigma in (self.sigma_min, self.sigma_max)):
            raise ValueError(f"sigma_min={self.sigma_min!r} and sigma_max={self.sigma_max!r} should be above 0")

    def alphas_cumprod(self) -> np.ndarray:
        """The fraction of signal left at each training timestep: [num_train_timesteps], float64."""
        n = self.num_train_timesteps
        if self.beta_schedule == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021
            signal = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
        else:
            power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
            betas = np.linspace(self.beta_start**power, self.beta_end**power, n) ** (1 / power)
        alphas = np.cumprod(1.0 - betas)
        if not self.rescale_betas_zero_snr:
            return alphas
        signal = np.sqrt(alphas)  # moved to end at 0 and scaled to begin where it did (Lin et al. 2023, algorithm 1)
        return ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2

    def sigmas(self) -> np.ndarray:
        """Noise relative to signal at each training timestep: [num_train_timesteps], float64. All are finite."""
        alphas = self.alphas_cumprod()
        if self.rescale_betas_zero_snr:
            alphas[-1] = _LAST_SIGNAL
        return np.sqrt((1 - alphas) / alphas)


def check_choice(field: str, value: object, choices: tuple) -> None:
    """Raises ValueError, naming the field and the choices, unless `value` is one of them."""
    if value not in choices:
        wanted = ", ".join(repr(v) for v in choices if v is not None)
        raise ValueError(f"{field}={value!r} is not supported (only {wanted})")


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


def vp_levels(alpha: float) -> tuple[float, float]:
    """Levels of signal and noise where `alpha` of the variance is signal."""
    return np.sqrt(alpha), np.sqrt(1 - alpha)


def clean_sample(prediction_type: str, signal: float, noise: float) -> tuple[float, float]:
    """Coefficients of (sample, model output) in the predicted clean sample, at the given levels of signal and noise."""
    if prediction_type == "epsilon":
        return 1.0 / signal, -noise / signal
    return (signal, -noise) if prediction_type == "v_prediction" else (0.0, 1.0)


def pure_noise(prediction_type: str, signal: float, noise: float) -> tuple[float, float]:
    """Coefficients of (sample, model output) in the predicted noise, at the given levels of signal and noise."""
    if prediction_type == "sample":
        return 1.0 / noise, -signal / noise
    return (noise, signal) if prediction_type == "v_prediction" else (0.0, 1.0)
