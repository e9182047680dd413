"""SchedulerConfig: the noise schedule and the sampler of a scheduler_config.json."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.diffusion.schedulers import ddim, dpm, euler, pndm
from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions, check_choice
from nextgpt_jax.models.diffusion.schedulers.table import SamplerTable, StepCoefficients, pack


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """A diffusers class: its name, the options that change its computation with the values implemented, and its steps.

    coefficients: from the options and the number of steps to one row per evaluation and the initial noise level.
    """

    class_name: str
    supported: Mapping[str, tuple]
    coefficients: Callable[[SchedulerOptions, int], tuple[list[StepCoefficients], float]]


_SAMPLERS = {
    "pndm": _Sampler("PNDMScheduler", pndm.SUPPORTED, pndm.coefficients),
    "ddim": _Sampler("DDIMScheduler", ddim.SUPPORTED, ddim.coefficients),
    "dpm++": _Sampler("DPMSolverMultistepScheduler", dpm.SUPPORTED, dpm.coefficients),
    "euler": _Sampler("EulerDiscreteScheduler", euler.SUPPORTED, euler.coefficients),
}
SAMPLERS = tuple(_SAMPLERS)
_BY_CLASS = {sampler.class_name: name for name, sampler in _SAMPLERS.items()}

# Of all samplers; each class ignores those it does not have.
_SUPPORTED = {
    **hf_fields.DIFFUSERS_SUPPORTED,
    "_class_name": tuple(_BY_CLASS),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (None, False),
    "thresholding": (None, False),
}
# Options of what is not supported above, and of diffusers' other classes: it drops them when a class lacks them.
_HARMLESS = {
    *hf_fields.DIFFUSERS, *(option for sampler in _SAMPLERS.values() for option in sampler.supported),
    "clip_sample_range", "disable_corrector", "dynamic_thresholding_ratio", "flow_shift", "interpolation_type",
    "noise_sampler_seed", "predict_x0", "rho", "sample_max_value", "shift_terminal", "sigma_data", "sigma_schedule",
    "solver_p", "time_shift_type", "timestep_type", "variance_type",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig(SchedulerOptions):
    """Noise schedule and sampler. Fields as in the hub's scheduler_config.json, `name` for its `_class_name`.

    `dataclasses.replace(config, name="dpm++")` changes the sampler and keeps the noise schedule.
    """

    name: str = "pndm"

    def __post_init__(self):
        check_choice("name", self.name, SAMPLERS)
        super().__post_init__()
        if self.name == "pndm" and self.prediction_type == "sample":
            raise ValueError("PNDM has no prediction_type='sample'")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SchedulerConfig":
        """Reads a scheduler_config.json. Raises UserError for a class or an option that is not implemented."""
        kind = config.get("_class_name")
        if kind not in _BY_CLASS:
            raise UserError(f"SchedulerConfig: _class_name={kind!r} is not supported (only {', '.join(_BY_CLASS)})")
        name = _BY_CLASS[kind]
        if name == "ddim":
            config = {"clip_sample": True, **config}  # that class's default, which latents must not have
        if config.get("use_karras_sigmas", False) is None:
            config = {**config, "use_karras_sigmas": False}
        supported = {**_SUPPORTED, **_SAMPLERS[name].supported}
        return hf_config.config_from_dict(cls, {**config, "name": name}, supported, _HARMLESS)

    @classmethod
    def stable_diffusion(cls, name: str, **changes: Any) -> "SchedulerConfig":
        """The noise schedule that Stable Diffusion 1 and 2, and Zeroscope, were trained with."""
        published = {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "skip_prk_steps": True,
            "steps_offset": 1,
            "set_alpha_to_one": False,
        }
        return cls(name=name, **(published | changes))

    def sampler_table(self, num_inference_steps: int) -> SamplerTable:
        """The coefficients of a sampling run. PNDM evaluates the model more often than `num_inference_steps`.

        Raises:
          UserError: `num_inference_steps` is below 1, above num_train_timesteps, too few for PNDM's Runge-Kutta start,
            or so many that two of them are at the same noise level.
        """
        if not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise UserError(f"the number of steps must be 1 to {self.num_train_timesteps}, got {num_inference_steps}")
        with np.errstate(all="ignore"):  # checked below
            rows, sigma = _SAMPLERS[self.name].coefficients(self, num_inference_steps)
        if not all(np.isfinite(np.hstack(dataclasses.astuple(row))).all() for row in rows):
            raise UserError(
                f"{self.name} can't take as many as {num_inference_steps} steps on this noise schedule: take fewer"
            )
        return pack(rows, sigma)
