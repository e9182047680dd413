"""SchedulerConfig: the noise schedule and the sampler of a scheduler_config.json."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.diffusion.schedulers import ddim, ddpm, dpm, euler, pndm, unipc
from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions, check_choice
from nextgpt_jax.models.diffusion.schedulers.table import Run, SamplerTable, pack


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """A diffusers class: its name, the options that are no fields here with the values implemented, and its steps.

    check: raises ValueError for values of fields that it has but that are not implemented.
    coefficients: from the options, the number of steps, and the evaluation that is the first one, to a run.
    """

    class_name: str
    supported: Mapping[str, tuple]
    check: Callable[[SchedulerOptions], None]
    coefficients: Callable[[SchedulerOptions, int, int], Run]


_SAMPLERS = {
    "pndm": _Sampler("PNDMScheduler", pndm.SUPPORTED, pndm.check, pndm.coefficients),
    "ddim": _Sampler("DDIMScheduler", ddim.SUPPORTED, ddim.check, ddim.coefficients),
    "dpm++": _Sampler("DPMSolverMultistepScheduler", dpm.SUPPORTED, dpm.check, dpm.coefficients),
    "unipc": _Sampler("UniPCMultistepScheduler", unipc.SUPPORTED, unipc.check, unipc.coefficients),
    "euler": _Sampler("EulerDiscreteScheduler", euler.SUPPORTED, euler.check, euler.coefficients),
    "euler_a": _Sampler(
        "EulerAncestralDiscreteScheduler",
        euler.ANCESTRAL_SUPPORTED,
        euler.check_ancestral,
        euler.ancestral_coefficients,
    ),
    "ddpm": _Sampler("DDPMScheduler", ddpm.SUPPORTED, ddpm.check, ddpm.coefficients),
}
SAMPLERS = tuple(_SAMPLERS)
_BY_CLASS = {sampler.class_name: name for name, sampler in _SAMPLERS.items()}

# Of all samplers; each class ignores those it does not have.
_SUPPORTED = {
    **hf_fields.DIFFUSERS_SUPPORTED,
    "_class_name": tuple(_BY_CLASS),
    "trained_betas": (None,),
    "thresholding": (None, False),
}
# Options of what is not supported above, and of diffusers' other classes: it drops them when a class lacks them.
_HARMLESS = {
    *hf_fields.DIFFUSERS, *(option for sampler in _SAMPLERS.values() for option in sampler.supported),
    "clip_sample_range", "dynamic_thresholding_ratio", "flow_shift", "noise_sampler_seed", "rho", "sample_max_value",
    "sigma_data", "sigma_schedule", "time_shift_type",
}  # fmt: skip
_NULLABLE = ("rescale_betas_zero_snr", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig(SchedulerOptions):
    """Noise schedule and sampler. Fields as in the hub's scheduler_config.json, `name` for its `_class_name`.

    `config.with_sampler("dpm++")` changes the sampler and keeps the noise schedule.
    """

    name: str = "pndm"

    def __post_init__(self):
        check_choice("name", self.name, SAMPLERS)
        super().__post_init__()
        _SAMPLERS[self.name].check(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SchedulerConfig":
        """Reads a scheduler_config.json. Raises UserError for a class or an option that is not implemented."""
        kind = config.get("_class_name")
        if kind not in _BY_CLASS:
            raise UserError(f"SchedulerConfig: _class_name={kind!r} is not supported (only {', '.join(_BY_CLASS)})")
        name = _BY_CLASS[kind]
        config = {**config, **{key: False for key in _NULLABLE if config.get(key, False) is None}, "name": name}
        if "clip_sample" in _SAMPLERS[name].supported:
            config = {"clip_sample": True, **config}  # that class's default, which latents must not have
        if config.get("lambda_min_clipped") == -float("inf"):  # its default
            config["lambda_min_clipped"] = None
        supported = {**_SUPPORTED, **_SAMPLERS[name].supported}
        return hf_config.config_from_dict(cls, config, supported, _HARMLESS)

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

    def with_sampler(self, name: str) -> "SchedulerConfig":
        """This noise schedule and these options with another sampler; "": with its own.

        Raises:
          UserError: there is no such sampler, or it does not have the options.
        """
        if name and name not in SAMPLERS:
            raise UserError(f"sampler={name!r} is not one of {', '.join(SAMPLERS)}{nearest(name, SAMPLERS)}")
        try:
            return dataclasses.replace(self, name=name) if name else self
        except ValueError as error:
            raise UserError(f"sampler={name!r}: {error}") from None

    def sampler_table(self, num_inference_steps: int, strength: float | None = None) -> SamplerTable:
        """The coefficients of a sampling run. PNDM evaluates the model more often than `num_inference_steps`.

        Args:
          strength: in (0, 1]. The run begins from a clean sample with noise (see `init_state`), and has this share of
            the steps, the last ones, as in diffusers' img2img pipelines. None: it begins from noise alone.

        Raises:
          UserError: `num_inference_steps` is below 1, above num_train_timesteps, too few for PNDM's Runge-Kutta start,
            or so many that two of them are at the same noise level; or `strength` leaves no step, or the sampler can't
            begin later.
        """
        self._check_steps(num_inference_steps)
        first = 0 if strength is None else num_inference_steps - steps_at(num_inference_steps, strength)
        with np.errstate(all="ignore"):  # checked below
            run = _SAMPLERS[self.name].coefficients(self, num_inference_steps, first)
            if not run.rows:
                raise UserError(
                    f"strength={strength:g} leaves no step of {self.name} on this noise schedule: give more"
                )
            signal, noise = (0.0, run.initial) if strength is None else run.levels
            table = pack(run.rows, noise, signal)
        return self._finite(table, num_inference_steps)

    def inversion_table(self, num_inference_steps: int, strength: float = 1.0) -> SamplerTable:
        """The coefficients of DDIM's run backwards, from a clean sample to where `sampler_table` of DDIM begins.

        As diffusers' DDIMInverseScheduler. The run begins from the sample itself: `init_state` adds no noise.

        Raises:
          UserError: as `sampler_table`, or the schedule's options do not allow it.
        """
        self._check_steps(num_inference_steps)
        with np.errstate(all="ignore"):  # checked below
            try:
                count = steps_at(num_inference_steps, strength)
                table = pack(ddim.inversion(self, num_inference_steps, count), 0.0, 1.0)
            except ValueError as error:
                raise UserError(f"DDIM can't be inverted: {error}") from None
        return self._finite(table, num_inference_steps)

    def _check_steps(self, num_inference_steps: int) -> None:
        if not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise UserError(f"the number of steps must be 1 to {self.num_train_timesteps}, got {num_inference_steps}")

    def _finite(self, table: SamplerTable, num_inference_steps: int) -> SamplerTable:
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(table)):
            remedy = "take fewer"
            if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
                remedy = "with rescale_betas_zero_snr, prediction_type should be v_prediction"
            raise UserError(f"{self.name} can't take {num_inference_steps} steps on this noise schedule: {remedy}")
        return table


def steps_at(num_inference_steps: int, strength: float) -> int:
    """How many of the steps are taken at a strength.

    Raises:
      UserError: the strength is outside (0, 1], or so small that it is none of them.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength is out of range: {strength:g} (above 0, at most 1)")
    if not (count := min(int(num_inference_steps * strength), num_inference_steps)):
        least = math.ceil(1000 / num_inference_steps) / 1000
        raise UserError(f"strength={strength:g} leaves none of {num_inference_steps} steps: give at least {least:g}")
    return count
