"""The image decoder: its autoencoder, then its text encoder and UNet."""

import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from transformers import AutoTokenizer

from examples.keypad import judge, vocabularies, world
from examples.keypad.pretrain.common import DIFFUSERS_WEIGHTS, all_captions, caption_ids, fit, load, save, write_json
from nextgpt_jax.models.diffusion.clip_text import CLIPTextModel
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig, add_noise, training_target
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusion, StableDiffusionConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConditionModel
from nextgpt_jax.models.diffusion.vae import AutoencoderKL, AutoencoderKLConfig
from nextgpt_jax.weights.tables import stable_diffusion as stable_diffusion_table

TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 624,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": vocabularies.CONTEXT,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 622,
    "eos_token_id": 623,
    "pad_token_id": 623,
    "torch_dtype": "float16",
}

VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [16, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": world.SIZE,
}

UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [48, 96],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 64,
    "norm_num_groups": 16,
    "sample_size": world.SIZE // 4,
}

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

PROMPT_NOISE = 0.1  # deviation of what decoders see in training: projections only come near a caption's embedding

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _pixel_batches(rng: np.random.Generator, size: int) -> Iterator[np.ndarray]:
    ink = world.ink()[world.TRAIN]
    while True:
        yield pixels(world.augmented(ink[rng.integers(len(ink), size=size)], rng, 0.7))


def pixels(ink: np.ndarray) -> np.ndarray:
    return world.paper(ink).astype(np.float32) / 127.5 - 1.0


def autoencoder_loss(model: AutoencoderKL, x: Array, key: Array) -> tuple[Array, dict[str, Array]]:
    """Of pixels or a spectrogram: the errors of what comes out of sampled latents, and a little for their spread."""
    mean, logvar = model.encode(x)
    latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    error = model.decode(latents) - x
    divergence = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).mean()
    return jnp.abs(error).mean() + jnp.square(error).mean() + 1e-3 * divergence, {"rms": jnp.sqrt((error**2).mean())}


def vae(output: pathlib.Path, *, steps: int = 1000) -> None:
    """The decoder's autoencoder, with the scaling that gives its latents unit deviation."""
    model = AutoencoderKL(AutoencoderKLConfig.from_dict(VAE), rngs=nnx.Rngs(0))
    batches = _pixel_batches(np.random.default_rng(0), 16)
    model = fit("vae", model, autoencoder_loss, batches, steps=steps, lr=2e-3, ema=0.99)
    mean, _ = model.encode(jnp.asarray(pixels(world.ink()[world.TRAIN][:400])))
    config = VAE | {"scaling_factor": round(float(1.0 / mean.std()), 5)}
    save(model, stable_diffusion_table.VAE, config, output / "stable-diffusion" / "vae", DIFFUSERS_WEIGHTS)


def _latents(vae: AutoencoderKL, scale: float, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Scaled latents of augmented copies of the training scans, and their digits."""
    graphdef, params = nnx.split(vae)
    encode = jax.jit(lambda params, x: nnx.merge(graphdef, params).encode(x)[0] * scale)
    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    rng = np.random.default_rng(1)
    encoded = [np.asarray(encode(params, pixels(world.augmented(ink, rng, 0.5)))) for _ in range(copies)]
    return np.concatenate(encoded), np.tile(labels, copies)


class _Denoiser(nnx.Module):
    """What is trained together: the text encoder and the UNet."""

    def __init__(self, cfg: StableDiffusionConfig, *, rngs: nnx.Rngs):
        self.text_encoder = CLIPTextModel(cfg.text_encoder, rngs=rngs)
        self.unet = UNet2DConditionModel(cfg.unet, rngs=rngs)


def _latent_batches(latents, labels, captions, unconditional, rng, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Latents with a spelling of their caption, half of the time the usual one; the empty caption for a tenth."""
    while True:
        rows = rng.integers(len(latents), size=size)
        spellings = rng.integers(captions.shape[1], size=size) * (rng.random(size) < 0.5)
        ids = captions[labels[rows], spellings]
        ids[rng.random(size) < 0.1] = unconditional
        yield {"latents": latents[rows], "captions": ids}


def denoising_loss(scheduler: SchedulerConfig, predict: Callable[[Array, Array], Array], x: Array, key: Array) -> Array:
    """Mean squared error of the prediction for latents with noise of random timesteps."""
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x.shape)
    timesteps = jax.random.randint(time_key, (len(x),), 0, scheduler.num_train_timesteps)
    predicted = predict(add_noise(scheduler, x, noise, timesteps), timesteps)
    return jnp.square(predicted - training_target(scheduler, x, noise, timesteps)).mean()


def diffusion(output: pathlib.Path, *, steps: int = 2400) -> None:
    """The decoder's text encoder and UNet, on the latents of the autoencoder in the same folder."""
    folder = output / "stable-diffusion"
    vocabularies.save(vocabularies.caption_tokenizer(), folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    write_json(folder / "text_encoder" / "config.json", TEXT_ENCODER)
    write_json(folder / "unet" / "config.json", UNET)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)

    cfg = StableDiffusionConfig.from_pretrained(folder)
    autoencoder = load(lambda: AutoencoderKL(cfg.vae, rngs=nnx.Rngs(0)), folder / "vae", stable_diffusion_table.VAE)
    latents, labels = _latents(autoencoder, cfg.vae.scaling_factor, copies=16)
    captions, unconditional = all_captions(tokenizer, "image"), caption_ids(tokenizer, [""])[0]
    batches = _latent_batches(latents, labels, captions, unconditional, np.random.default_rng(2), 32)

    def loss(model: _Denoiser, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        prompts = model.text_encoder(batch["captions"])
        return denoising_loss(cfg.scheduler, lambda x, t: model.unet(x, t, prompts), batch["latents"], key), {}

    model = fit("unet", _Denoiser(cfg, rngs=nnx.Rngs(1)), loss, batches, steps=steps, lr=1e-3, ema=0.998)
    tables = stable_diffusion_table
    save(model.text_encoder, tables.TEXT_ENCODER, TEXT_ENCODER, folder / "text_encoder", "model.safetensors")
    save(model.unet, tables.unet_table(cfg.unet), UNET, folder / "unet", DIFFUSERS_WEIGHTS)

    decoder = StableDiffusion(cfg, rngs=nnx.Rngs(0))
    decoder.text_encoder, decoder.unet, decoder.vae = model.text_encoder, model.unet, autoencoder
    _judge(decoder, captions[:, 0], unconditional)


def _judge(model: StableDiffusion, captions: np.ndarray, unconditional: np.ndarray, copies: int = 20) -> None:
    """Prints how many generated digits the judge recognises, by guidance."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def draw(params, noise, plan, guidance):
        model = nnx.merge(graphdef, params)
        prompt = jnp.repeat(model.encode_prompt(jnp.asarray(captions)), copies, 0)
        return model.generate(prompt, model.encode_prompt(jnp.asarray(unconditional)[None]), noise, plan, guidance)

    asked = np.repeat(np.arange(10), copies)
    noise = jax.random.normal(jax.random.key(7), (len(asked), *model.config.latent_shape(world.SIZE, world.SIZE)))
    for guidance in (1.0, 2.0, 3.0, 5.0, 7.5):
        images = draw(params, noise, model.config.scheduler.sampler_table(20), jnp.full(len(asked), guidance))
        right = int((judge.classify(np.round(np.asarray(images) * 255).astype(np.uint8)) == asked).sum())
        print(f"guidance {guidance}: {right} of {len(asked)} generated digits recognised", flush=True)
