"""The forward process and the training target of a noise schedule."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions

_Samples = Float[Array | np.ndarray, "b ..."]


def add_noise(options: SchedulerOptions, x: _Samples, noise: _Samples, timesteps: Int[Array, " b"]) -> _Samples:
    """The clean samples `x` brought to the noise level of each row's timestep (the forward process)."""
    signal, spread = _levels(options, x, timesteps)
    return signal * x + spread * noise


def training_target(options: SchedulerOptions, x: _Samples, noise: _Samples, timesteps: Int[Array, " b"]) -> _Samples:
    """The model's target for the input `add_noise(...)`: noise, velocity or the clean sample."""
    if options.prediction_type == "epsilon":
        return noise
    if options.prediction_type == "sample":
        return x
    signal, spread = _levels(options, x, timesteps)
    return signal * noise - spread * x


def _levels(options: SchedulerOptions, x: _Samples, timesteps: Int[Array, " b"]) -> tuple[Array, Array]:
    """Levels of signal and noise, which broadcast against `x`."""
    alphas = options.alphas_cumprod()
    shape = (-1, *(1,) * (x.ndim - 1))
    signal, spread = (jnp.asarray(np.sqrt(a), x.dtype)[timesteps].reshape(shape) for a in (alphas, 1.0 - alphas))
    return signal, spread
