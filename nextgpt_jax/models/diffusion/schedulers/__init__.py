"""Noise schedules and samplers, as tables of coefficients.

Every sampler here is linear in its inputs: the current sample, an earlier sample, the model outputs of a few
evaluations and, if it is stochastic, new noise. So `SchedulerConfig.sampler_table(n)` computes all coefficients in
float64 beforehand, one row per evaluation, and a single `step` runs any of them: PNDM (with and without Runge-Kutta
start), DDIM (eta 0), DDPM, DPM-Solver and DPM-Solver++ (order 1 to 3, ODE and SDE), UniPC, Euler and ancestral Euler.
The rows are padded and their number is a traced value, so neither another number of steps nor another sampler
recompiles anything, except that all samplers that draw noise share a program of their own. Trajectories match
diffusers' scheduler classes.
"""

from nextgpt_jax.models.diffusion.schedulers.config import SAMPLERS, SchedulerConfig, steps_at
from nextgpt_jax.models.diffusion.schedulers.table import (
    SamplerState,
    SamplerTable,
    StepCoefficients,
    init_state,
    model_input,
    step,
    step_noise,
)
from nextgpt_jax.models.diffusion.schedulers.training import add_noise, training_target

__all__ = [
    "SAMPLERS",
    "SamplerState",
    "SamplerTable",
    "SchedulerConfig",
    "StepCoefficients",
    "add_noise",
    "init_state",
    "model_input",
    "step",
    "step_noise",
    "steps_at",
    "training_target",
]
