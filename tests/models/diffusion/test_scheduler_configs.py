"""Random scheduler configs: sampled as diffusers does, or refused. Published ones: with any sampler."""

import diffusers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig
from tests.models.diffusion.trajectories import CLASSES, reference, run
from tests.parity import relative_error

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")

_YES_OR_NO = (False, True)
_COMMON = {
    "num_train_timesteps": (1000, 50, 7),
    "beta_start": (0.0001, 0.00085),
    "beta_end": (0.012, 0.02),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": (0, 1),
}
_ZERO_SNR = {"rescale_betas_zero_snr": _YES_OR_NO}
_SIGMAS = _ZERO_SNR | {
    "use_karras_sigmas": _YES_OR_NO,
    "use_exponential_sigmas": _YES_OR_NO,
    "use_beta_sigmas": _YES_OR_NO,
    "final_sigmas_type": ("zero", "sigma_min"),
}
_MULTISTEP = _SIGMAS | {"solver_order": (1, 2, 3), "lower_order_final": _YES_OR_NO}
_OPTIONS = {
    "PNDMScheduler": {"skip_prk_steps": _YES_OR_NO, "set_alpha_to_one": _YES_OR_NO},
    "DDIMScheduler": _ZERO_SNR | {"set_alpha_to_one": _YES_OR_NO, "clip_sample": (False,)},
    "DDPMScheduler": _ZERO_SNR
    | {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "learned"), "clip_sample": (False,)},
    "DPMSolverMultistepScheduler": _MULTISTEP
    | {
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
        "solver_type": ("midpoint", "heun", "bh2"),
        "euler_at_final": _YES_OR_NO,
        "use_lu_lambdas": _YES_OR_NO,
        "lambda_min_clipped": (-float("inf"), -5.1),
    },
    "UniPCMultistepScheduler": _MULTISTEP
    | {"predict_x0": _YES_OR_NO, "solver_type": ("bh1", "bh2", "heun"), "disable_corrector": ([], [0], [1, 2])},
    "EulerDiscreteScheduler": _SIGMAS | {"sigma_min": (None, 0.1), "sigma_max": (None, 5.0)},
    "EulerAncestralDiscreteScheduler": _ZERO_SNR,
}
_CONFIGS = st.sampled_from(sorted(_OPTIONS)).flatmap(
    lambda kind: st.fixed_dictionaries(
        {"_class_name": st.just(kind)}
        | {name: st.sampled_from(values) for name, values in (_COMMON | _OPTIONS[kind]).items()}
    )
)


@given(config=_CONFIGS, steps=st.sampled_from((1, 2, 3, 4, 7, 12, 16, 50)))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_as_diffusers_or_refused(config, steps):
    try:
        table = SchedulerConfig.from_dict(config).sampler_table(steps)
    except UserError:
        return
    scheduler = getattr(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if k != "_class_name"})
    expected, expected_fed = reference(scheduler, steps)
    count = int(table.num_evaluations)
    timesteps = np.asarray(scheduler.timesteps, np.float64)
    assert count == len(timesteps)
    actual, fed = run(table)
    assert np.isfinite(actual).all()
    if not np.isfinite(expected).all():  # a step without length, or B(h) of an infinite h: diffusers divides 0 by 0
        return
    # Noise levels of thousands, where diffusers' own float32 arithmetic is off by this much; and timesteps that are
    # rounded from there.
    extreme = config["beta_schedule"] == "squaredcos_cap_v2" or config.get("rescale_betas_zero_snr", False)
    assert np.abs(table.coefficients.timestep[:count] - timesteps).max() <= (1 if extreme else 0.01)
    assert relative_error(fed[:count], expected_fed) < (1e-2 if extreme else 1e-3)
    assert relative_error(actual, expected) < (1e-2 if extreme else 1e-3)


_SD = {
    "_diffusers_version": "0.8.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
_PUBLISHED = {
    "stable-diffusion-v1-5": _SD | {"_class_name": "PNDMScheduler"},
    "stable-diffusion-2-1": _SD | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "stable-diffusion-2-1 with Euler": _SD
    | {
        "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "prediction_type": "v_prediction",
        "use_karras_sigmas": False,
    },
    "modelscope": _SD
    | {
        "_class_name": "DDIMScheduler", "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995,
        "prediction_type": "epsilon", "sample_max_value": 1.0, "thresholding": False,
    },
    "audioldm": _SD | {"_class_name": "DDIMScheduler", "beta_start": 0.0015, "beta_end": 0.0195},
    "zeroscope": _SD
    | {
        "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
        "dynamic_thresholding_ratio": 0.995, "lambda_min_clipped": -float("inf"), "lower_order_final": True,
        "prediction_type": "epsilon", "sample_max_value": 1.0, "solver_order": 2, "solver_type": "midpoint",
        "thresholding": False, "timestep_spacing": "linspace", "use_karras_sigmas": False, "variance_type": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("published", _PUBLISHED)
def test_published_configs_with_any_sampler(published):
    config = SchedulerConfig.from_dict(_PUBLISHED[published])
    for name, kind in CLASSES.items():
        scheduler = getattr(diffusers, kind).from_config(_PUBLISHED[published])
        table = config.with_sampler(name).sampler_table(10)
        assert relative_error(run(table)[0], reference(scheduler, 10)[0]) < 1e-3, name
