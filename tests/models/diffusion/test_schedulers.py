"""Whole trajectories against diffusers' scheduler classes, with a toy denoiser."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion import schedulers
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig
from tests.models.diffusion.trajectories import CLASSES, KEYS, NOISE, reference, run
from tests.parity import relative_error

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation",  # diffusers with numpy 2
    "ignore:`algorithm_types dpmsolver",
)

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
CASES = [
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "prediction_type": "v_prediction"}),
    ("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}),
    ("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": "linspace"}),
    ("PNDMScheduler", {"skip_prk_steps": False}),
    ("PNDMScheduler", {"skip_prk_steps": False, "prediction_type": "v_prediction", "steps_offset": 1}),
    ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction", "set_alpha_to_one": False}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample", "timestep_spacing": "linspace"}),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": False, "beta_start": 0.0015, "beta_end": 0.0195, "steps_offset": 1}),
    ("DDIMScheduler", {"clip_sample": False, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "sample", "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "leading", "steps_offset": 1, "final_sigmas_type": "sigma_min"},
    ),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"prediction_type": "sample", "timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min", "timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("EulerDiscreteScheduler", ZERO_SNR),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, **ZERO_SNR}),
    ("DDIMScheduler", {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False, "use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "lambda_min_clipped": -5.1}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    (
        "DPMSolverMultistepScheduler",
        {
            "algorithm_type": "dpmsolver",
            "final_sigmas_type": "sigma_min",
            "solver_order": 3,
            "prediction_type": "sample",
        },
    ),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", **ZERO_SNR}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}),
    ("UniPCMultistepScheduler", {"solver_order": 1, "timestep_spacing": "leading", "steps_offset": 1}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_order": 3}),
    ("UniPCMultistepScheduler", {"disable_corrector": [0, 2], "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", ZERO_SNR),
    ("EulerAncestralDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerAncestralDiscreteScheduler", ZERO_SNR),
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large", "steps_offset": 1}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small_log", "timestep_spacing": "linspace"}),
    ("DDPMScheduler", {"clip_sample": False, **ZERO_SNR}),
]


@pytest.fixture
def noise():
    return NOISE


@pytest.mark.parametrize("steps", [5, 10, 40])
@pytest.mark.parametrize("name,options", CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
def test_trajectory(name, options, steps, noise):
    scheduler = getattr(diffusers, name)(**{**SD, **options})
    config = SchedulerConfig.from_dict({**scheduler.config, "_class_name": name})
    table = config.sampler_table(steps)
    expected, expected_fed = reference(scheduler, steps, noise)
    actual, fed = run(table, noise)

    assert table.num_evaluations == len(scheduler.timesteps)
    assert (
        relative_error(
            table.coefficients.timestep[: table.num_evaluations], np.asarray(scheduler.timesteps, np.float64)
        )
        < 1e-5
    )
    assert relative_error(table.init_noise_sigma, np.float64(scheduler.init_noise_sigma)) < 1e-5
    assert relative_error(fed[: table.num_evaluations], expected_fed) < 1e-3
    assert relative_error(actual, expected) < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", schedulers.SAMPLERS)
def test_few_steps(name, steps):
    options = SD | ({"clip_sample": False} if "DD" in CLASSES[name] else {})
    options |= {"skip_prk_steps": True} if name == "pndm" else {}
    scheduler = getattr(diffusers, CLASSES[name])(**options)
    table = SchedulerConfig.from_dict({**options, "_class_name": CLASSES[name]}).sampler_table(steps)
    assert relative_error(run(table)[0], reference(scheduler, steps)[0]) < 1e-3


def test_prk_with_the_fewest_steps(noise):
    table = SchedulerConfig(**SD).sampler_table(4)
    expected, _ = reference(diffusers.PNDMScheduler(**SD), 4, noise)
    assert table.num_evaluations == 13
    assert relative_error(run(table, noise)[0], expected) < 1e-3


@pytest.mark.parametrize("name", ["dpm++", "euler", "unipc", "euler_a"])
def test_swapping_the_sampler_uses_its_defaults(name):
    original = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SD)
    config = SchedulerConfig(name="pndm", skip_prk_steps=True, steps_offset=1, **SD)
    expected, _ = reference(getattr(diffusers, CLASSES[name]).from_config(original.config), 12)
    assert relative_error(run(config.with_sampler(name).sampler_table(12))[0], expected) < 1e-3


def test_swapping_the_sampler():
    config = SchedulerConfig(name="ddim", prediction_type="sample", **SD)
    assert config.with_sampler("") is config and config.with_sampler("ddim") == config
    assert config.with_sampler("unipc") == dataclasses.replace(config, name="unipc")
    with pytest.raises(UserError, match="sampler='dpm' is not one of pndm, ddim"):
        config.with_sampler("dpm")
    with pytest.raises(UserError, match="sampler='euler_a': ancestral Euler has no prediction_type='sample'"):
        config.with_sampler("euler_a")


def test_neither_steps_nor_sampler_recompile():
    """There is one program for all samplers that draw noise, and one for all others."""
    traces = []

    @jax.jit
    def sample(table, noise):
        traces.append(table.stochastic)
        return run(table, noise)[0]

    x = jnp.ones((2, 2, 2, 1))
    for name in schedulers.SAMPLERS:
        for steps in (5, 20, 50):
            assert np.isfinite(sample(SchedulerConfig(name=name, **SD).sampler_table(steps), x)).all()
    assert sorted(traces) == [False, True]


def test_noise_of_a_row_depends_on_its_key_alone():
    table = SchedulerConfig(name="euler_a", **SD).sampler_table(5)
    both, _ = run(table)
    for i in range(2):
        alone, _ = run(table, NOISE[[i, i]], KEYS[jnp.array([i, 1 - i])])
        np.testing.assert_array_equal(alone[0], both[i])
        assert relative_error(alone[1], both[i]) > 0.1
    with pytest.raises(ValueError, match="random key per row"):
        schedulers.init_state(table, NOISE)


def test_every_number_of_steps_has_tables_of_one_shape():
    config = SchedulerConfig(name="ddim", **SD)
    assert [int(config.sampler_table(steps).num_evaluations) for steps in (1, 100, 999)] == [1, 100, 999]
    shapes = {steps: [leaf.shape for leaf in jax.tree.leaves(config.sampler_table(steps))] for steps in (1, 100, 999)}
    assert shapes[1] == shapes[100] == shapes[999]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_training_noise_and_target(prediction_type, noise):
    scheduler = diffusers.DDIMScheduler(**SD)
    config = SchedulerConfig(name="ddim", prediction_type=prediction_type, **SD)
    x, t = noise[::-1].copy(), np.array([3, 990])
    expected = scheduler.add_noise(torch.from_numpy(x), torch.from_numpy(noise), torch.from_numpy(t))
    velocity = scheduler.get_velocity(torch.from_numpy(x), torch.from_numpy(noise), torch.from_numpy(t))
    target = {"epsilon": noise, "v_prediction": velocity, "sample": x}[prediction_type]
    assert relative_error(schedulers.add_noise(config, jnp.asarray(x), noise, jnp.asarray(t)), expected) < 1e-5
    assert relative_error(schedulers.training_target(config, jnp.asarray(x), noise, jnp.asarray(t)), target) < 1e-5


@pytest.mark.parametrize(
    "config,message",
    [
        ({"_class_name": "LCMScheduler"}, "_class_name='LCMScheduler'"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample=True"),
        ({"_class_name": "DDIMScheduler", "clip_sample": False, "thresholding": True}, "thresholding=True"),
        ({"_class_name": "PNDMScheduler", "trained_betas": [0.1]}, "trained_betas"),
        ({"_class_name": "DDPMScheduler", "clip_sample": False, "beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"_class_name": "DDPMScheduler"}, "clip_sample=True"),
        ({"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "learned"}, "variance_type='learned'"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, "PNDM has no"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "solver_order=4"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "deis"}, "algorithm_type='deis'"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            "final_sigmas_type='sigma_min'",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"}, "variance_type='learned'"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "interpolation_type"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_min": 0}, "above 0"),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True, "use_karras_sigmas": True},
            "only one of use_karras_sigmas, use_beta_sigmas",
        ),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "sample"}, "prediction_type='sample'"),
        ({"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "euler"}, "solver_type='euler'"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_p": {}}, "solver_p"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0=False"),
        ({"_class_name": "UniPCMultistepScheduler", "lower_order_final": False}, "lower_order_final=False"),
    ],
)
def test_unsupported(config, message):
    with pytest.raises(UserError, match=message):
        SchedulerConfig.from_dict(config)


@pytest.mark.parametrize(
    "config,steps",
    [(SchedulerConfig(), 3)]
    + [(SchedulerConfig(name=name), steps) for name in schedulers.SAMPLERS for steps in (0, 1001)],
)
def test_bad_number_of_steps(config, steps):
    with pytest.raises(UserError, match=f"got {steps}"):
        config.sampler_table(steps)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_noise_is_not_predicted_from_noise_alone(name):
    config = SchedulerConfig(name=name, rescale_betas_zero_snr=True, timestep_spacing="trailing", **SD)
    with pytest.raises(UserError, match="prediction_type should be v_prediction"):
        config.sampler_table(10)
