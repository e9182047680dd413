"""Sampling that begins from a clean sample with noise, and DDIM's inversion, against diffusers' scheduler classes."""

import diffusers
import numpy as np
import pytest
import torch

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig, steps_at
from tests.models.diffusion.trajectories import CLASSES, NOISE, reference, run, toy
from tests.parity import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers with numpy 2

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLEAN = np.random.default_rng(1).standard_normal(NOISE.shape).astype(np.float32)
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
CASES = [
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    ("PNDMScheduler", {"skip_prk_steps": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}),
    ("DDIMScheduler", {"clip_sample": False, **ZERO_SNR}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "timestep_spacing": "leading"}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("UniPCMultistepScheduler", {"disable_corrector": [12], "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DDPMScheduler", {"clip_sample": False, "steps_offset": 1}),
]


@pytest.mark.parametrize("steps,strength", [(20, 0.35), (20, 1.0), (7, 0.3), (50, 0.58)])
@pytest.mark.parametrize("name,options", CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
def test_trajectory_from_a_sample(name, options, steps, strength):
    scheduler = getattr(diffusers, name)(**SD | options)
    table = SchedulerConfig.from_dict({**scheduler.config, "_class_name": name}).sampler_table(steps, strength)
    expected, expected_fed = reference(scheduler, steps, NOISE, CLEAN, strength)
    actual, fed = run(table, clean=CLEAN)
    assert table.num_evaluations == len(expected_fed)
    assert relative_error(fed[: len(expected_fed)], expected_fed) < 1e-3
    assert relative_error(actual, expected) < 1e-3


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("to_one", [False, True])
def test_inversion(spacing, prediction_type, to_one):
    options = SD | {"clip_sample": False, "set_alpha_to_one": to_one, "steps_offset": 1, "timestep_spacing": spacing}
    scheduler = diffusers.DDIMInverseScheduler(**options, prediction_type=prediction_type)
    config = SchedulerConfig(name="ddim", prediction_type=prediction_type, **_without(options, "clip_sample"))
    if to_one and prediction_type == "sample":
        with pytest.raises(UserError, match="ddim can't take 20 steps"):  # the noise of a clean sample: 0 / 0
            config.inversion_table(20)
        return
    scheduler.set_timesteps(20)
    expected = torch.from_numpy(CLEAN)
    for t in scheduler.timesteps[:12]:
        expected = scheduler.step(toy(expected, t, torch), t, expected).prev_sample
    table = config.inversion_table(20, 0.6)
    assert table.num_evaluations == 12
    actual, _ = run(table, clean=CLEAN)
    assert relative_error(actual, expected) < 1e-4
    forward = config.sampler_table(20, 0.6)  # begins where the inversion ends
    assert forward.coefficients.timestep[0] == table.coefficients.timestep[11]


def test_inversion_is_undone_by_sampling():
    config = SchedulerConfig(name="ddim", steps_offset=1, set_alpha_to_one=False, **SD)
    inverted, _ = run(config.inversion_table(500, 0.5), clean=CLEAN)
    table = config.sampler_table(500, 0.5)
    assert relative_error(inverted, CLEAN) > 0.1
    back, _ = run(table, np.asarray(inverted) / table.init_noise_sigma, clean=np.zeros_like(CLEAN))
    assert relative_error(back, CLEAN) < 0.02


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strengths_that_are_none(strength):
    with pytest.raises(UserError, match="strength is out of range"):
        steps_at(20, strength)


def test_strengths_that_leave_no_step():
    with pytest.raises(UserError, match="strength=0.03 leaves none of 30 steps: give at least 0.034"):
        SchedulerConfig(name="ddim", **SD).sampler_table(30, 0.03)
    assert steps_at(30, 0.034) == 1 and steps_at(20, 0.35) == 7 and steps_at(50, 0.58) == 28


def test_what_cannot_begin_later_or_be_inverted():
    with pytest.raises(UserError, match="Runge-Kutta steps can't begin from a noised sample"):
        SchedulerConfig(name="pndm", **SD).sampler_table(20, 0.5)
    with pytest.raises(UserError, match="DDIM can't be inverted: timestep_spacing='linspace'"):
        SchedulerConfig(name="ddim", timestep_spacing="linspace", **SD).inversion_table(20)
    clipped = SchedulerConfig(name="dpm++", lambda_min_clipped=-2.0, timestep_spacing="trailing", **SD)
    with pytest.raises(UserError, match="strength=0.05 leaves no step of dpm"):
        clipped.sampler_table(20, 0.05)


def test_all_samplers_begin_at_the_level_of_their_first_timestep():
    for name in CLASSES:
        config = SchedulerConfig(name=name, skip_prk_steps=True, **SD)
        levels = [config.sampler_table(20, strength) for strength in (0.2, 0.6, 1.0)]
        noise = [float(table.init_noise_sigma / table.init_signal) for table in levels]
        assert noise == sorted(noise) and noise[0] < noise[-1]
        assert config.sampler_table(20).init_signal == 0


def _without(options, name):
    return {key: value for key, value in options.items() if key != name}
