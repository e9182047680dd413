"""The training that the image, video and audio decoders share: prompts and latents to a UNet that denoises."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Shaped

from examples.keypad.pretrain.common import write_json
from nextgpt_jax.models.diffusion.latent_diffusion import LatentDiffusion
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig, add_noise, training_target
from nextgpt_jax.models.diffusion.vae import AutoencoderKL

SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.30.0",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "solver_order": 2,
    "steps_offset": 1,
}

PROMPT_NOISE = 0.1  # deviation in training: projections only approximate a caption's embedding


def write_configs(folder: pathlib.Path, model_index: dict[str, Any], **components: dict[str, Any]) -> None:
    """Writes a pipeline's model_index.json, its scheduler's config, and those of `components`."""
    for name, config in components.items():
        write_json(folder / name / "config.json", config)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", model_index)


def autoencoder_loss(model: AutoencoderKL, x: Array, key: Array) -> tuple[Array, dict[str, Array]]:
    """Of pixels or a spectrogram: the reconstruction error from sampled latents, and a small divergence."""
    mean, logvar = model.encode(x)
    latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    error = model.decode(latents) - x
    divergence = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).mean()
    return jnp.abs(error).mean() + jnp.square(error).mean() + 1e-3 * divergence, {"rms": jnp.sqrt((error**2).mean())}


def latent_encoder(vae: AutoencoderKL) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled function from pixels or spectrograms [B, H, W, C] to scaled latents."""
    graphdef, params = nnx.split(vae)
    scale = vae.config.scaling_factor
    encode = jax.jit(lambda params, x: nnx.merge(graphdef, params).encode(x)[0] * scale)
    return lambda x: np.asarray(encode(params, x))


def prompt_batches(
    latents: Shaped[np.ndarray, "n ..."],
    shown: Int[np.ndarray, " n"],
    prompts: Shaped[np.ndarray, "things spellings ..."],
    unconditional: Shaped[np.ndarray, "..."],
    rng: np.random.Generator,
    size: int,
    noise: float = 0.0,
) -> Iterator[dict[str, np.ndarray]]:
    """Latents, and the prompts of the things that they show: ids or embeddings.

    Half of the prompts are the usual spelling, half any spelling; a tenth is the empty one. `noise` is the
    deviation of Gaussian noise that is added to embeddings.
    """
    while True:
        rows = rng.integers(len(latents), size=size)
        spellings = rng.integers(prompts.shape[1], size=size) * (rng.random(size) < 0.5)
        chosen = prompts[shown[rows], spellings]
        if noise:
            chosen = chosen + noise * rng.standard_normal(chosen.shape).astype(np.float32)
        chosen[rng.random(size) < 0.1] = unconditional
        yield {"latents": latents[rows], "prompts": chosen}


def denoising_loss(scheduler: SchedulerConfig, predict: Callable[[Array, Array], Array], x: Array, key: Array) -> Array:
    """Mean squared error of the prediction for latents with noise of random timesteps."""
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x.shape)
    timesteps = jax.random.randint(time_key, (len(x),), 0, scheduler.num_train_timesteps)
    predicted = predict(add_noise(scheduler, x, noise, timesteps), timesteps)
    return jnp.square(predicted - training_target(scheduler, x, noise, timesteps)).mean()


def examine(
    model: LatentDiffusion,
    prompt_embeds: Array,
    negative_prompt_embeds: Array,
    latent_shape: tuple[int, ...],
    verdict: Callable[[np.ndarray], str],
    *,
    guidance_scales: Sequence[float] = (1.0, 2.0, 3.0, 5.0),
) -> None:
    """Prints `verdict` of the media generated for the prompts, by guidance scale."""
    graphdef, params = nnx.split(model)
    generate = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params).generate(*inputs))
    noise = jax.random.normal(jax.random.key(7), (len(prompt_embeds), *latent_shape))
    table = model.config.scheduler.sampler_table(20)
    for scale in guidance_scales:
        scales = jnp.full(len(prompt_embeds), scale)
        made = np.asarray(generate(params, prompt_embeds, negative_prompt_embeds, noise, table, scales))
        print(f"guidance scale {scale}: {verdict(made)}", flush=True)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Generated pixels, in 0 .. 1, as the judge takes them."""
    return np.round(pixels * 255).astype(np.uint8)
