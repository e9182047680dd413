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
from tests.parity import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers with numpy 2

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
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
]


def toy(x, t, numpy=jnp):
    return 0.9 * numpy.tanh(x) + 0.05 * numpy.sin(t / 100)


@jax.jit
def run(table, noise):
    """The samples before every evaluation (scaled as the model is fed) and the last one."""
    fed = jnp.zeros((table.coefficients.timestep.shape[0], *noise.shape))

    def evaluate(i, carry):
        state, fed = carry
        x = schedulers.model_input(table, i, state)
        return schedulers.step(table, i, state, toy(x, table.at(i).timestep)), fed.at[i].set(x)

    state, fed = jax.lax.fori_loop(0, table.num_evaluations, evaluate, (schedulers.init_state(table, noise), fed))
    return state.sample, fed


def reference(scheduler, steps, noise):
    scheduler.set_timesteps(steps)
    sample, fed = torch.from_numpy(noise) * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(sample, t)
        fed.append(x.numpy().copy())
        sample = scheduler.step(toy(x, t, torch), t, sample).prev_sample
    return sample, np.stack(fed)


@pytest.fixture
def noise():
    return np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)


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


@pytest.mark.parametrize(
    "name,steps", [("pndm", 1), ("pndm", 2), ("ddim", 1), ("dpm++", 1), ("dpm++", 2), ("euler", 1)]
)
def test_few_steps(name, steps, noise):
    classes = {
        "pndm": diffusers.PNDMScheduler(skip_prk_steps=True, **SD),
        "ddim": diffusers.DDIMScheduler(clip_sample=False, **SD),
        "dpm++": diffusers.DPMSolverMultistepScheduler(**SD),
        "euler": diffusers.EulerDiscreteScheduler(**SD),
    }
    table = SchedulerConfig(name=name, skip_prk_steps=True, **SD).sampler_table(steps)
    expected, _ = reference(classes[name], steps, noise)
    assert relative_error(run(table, noise)[0], expected) < 1e-3


def test_prk_with_the_fewest_steps(noise):
    table = SchedulerConfig(**SD).sampler_table(4)
    expected, _ = reference(diffusers.PNDMScheduler(**SD), 4, noise)
    assert table.num_evaluations == 13
    assert relative_error(run(table, noise)[0], expected) < 1e-3


def test_swapping_the_sampler_uses_its_defaults(noise):
    original = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SD)
    config = SchedulerConfig(name="pndm", skip_prk_steps=True, steps_offset=1, **SD)
    for name in ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler"):
        expected, _ = reference(getattr(diffusers, name).from_config(original.config), 12, noise)
        swapped = dataclasses.replace(config, name={"D": "dpm++", "E": "euler"}[name[0]])
        assert relative_error(run(swapped.sampler_table(12), noise)[0], expected) < 1e-3


def test_neither_steps_nor_sampler_recompile():
    traces = []

    @jax.jit
    def sample(table, noise):
        traces.append(1)
        return run(table, noise)[0]

    x = jnp.ones((1, 2, 2, 1))
    for name in schedulers.SAMPLERS:
        for steps in (5, 20, 50):
            assert np.isfinite(sample(SchedulerConfig(name=name, **SD).sampler_table(steps), x)).all()
    assert len(traces) == 1


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
        ({"_class_name": "PNDMScheduler", "beta_schedule": "squaredcos_cap_v2"}, "beta_schedule='squaredcos_cap_v2'"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, "PNDM has no"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order=3"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas=True"),
    ],
)
def test_unsupported(config, message):
    with pytest.raises(UserError, match=message):
        SchedulerConfig.from_dict(config)


@pytest.mark.parametrize(
    "config,steps", [(SchedulerConfig(), 3), (SchedulerConfig(name="ddim"), 0), (SchedulerConfig(), 1001)]
)
def test_bad_number_of_steps(config, steps):
    with pytest.raises(UserError, match=f"got {steps}"):
        config.sampler_table(steps)
