"""Whole trajectories of samplers with a toy denoiser: ours, and those of diffusers' scheduler classes."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.schedulers import (
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
)

from nextgpt_jax.models.diffusion import schedulers
from nextgpt_jax.models.diffusion.schedulers import SamplerTable

CLASSES = {  # of diffusers, by the names of samplers
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddpm": "DDPMScheduler",
}
KEYS = jax.random.split(jax.random.key(7), 2)
NOISE = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
_DRAW = [scheduling_ddpm, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete]


def toy(x, t, numpy=jnp):
    """A model's output for the input `x` at the timestep `t`."""
    return 0.9 * numpy.tanh(x) + 0.05 * numpy.sin(t / 100)


@jax.jit
def run(table: SamplerTable, noise=NOISE, keys=KEYS, clean=None):
    """The last sample, and those before every evaluation (scaled as the model is fed)."""
    fed = jnp.zeros((table.coefficients.timestep.shape[0], *noise.shape))

    def evaluate(i, carry):
        state, fed = carry
        x = schedulers.model_input(table, i, state)
        return schedulers.step(table, i, state, toy(x, table.at(i).timestep)), fed.at[i].set(x)

    state = schedulers.init_state(table, noise, keys, clean)
    state, fed = jax.lax.fori_loop(0, table.num_evaluations, evaluate, (state, fed))
    return state.sample, fed


def reference(scheduler: diffusers.SchedulerMixin, steps: int, noise=NOISE, clean=None, strength=1.0):
    """The same by a scheduler of diffusers, whose steps add the noise that ours draw from KEYS.

    From the sample `clean` at a strength as StableDiffusionImg2ImgPipeline calls the scheduler.
    """
    scheduler.set_timesteps(steps)
    first = (steps - min(int(steps * strength), steps)) * scheduler.order
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    sample, fed = torch.from_numpy(noise) * scheduler.init_noise_sigma, []
    if clean is not None:
        sample = scheduler.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), timesteps[:1].repeat(2))
    with _same_noise():
        for t in timesteps:
            x = scheduler.scale_model_input(sample, t)
            fed.append(x.numpy().copy())
            sample = scheduler.step(toy(x, t, torch), t, sample).prev_sample
    return sample.numpy(), np.stack(fed)


@contextlib.contextmanager
def _same_noise() -> Iterator[None]:
    """Every noise that diffusers draws is `step_noise` of the next evaluation."""
    calls = iter(range(10_000))

    def draw(shape, **_):
        return torch.from_numpy(np.array(_step_noise(next(calls))))

    with contextlib.ExitStack() as stack:
        for module in _DRAW:
            stack.enter_context(mock.patch.object(module, "randn_tensor", draw))
        yield


@jax.jit
def _step_noise(i):
    return schedulers.step_noise(schedulers.SamplerState(NOISE, None, None, KEYS), i)
