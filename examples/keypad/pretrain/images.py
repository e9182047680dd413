"""The image decoder: its autoencoder, then its text encoder and UNet."""

import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from transformers import AutoTokenizer

from examples.keypad import judge, vocabularies, world
from examples.keypad.pretrain.common import DIFFUSERS_WEIGHTS, all_captions, caption_ids, fit, load, save
from examples.keypad.pretrain.decoders import (
    autoencoder_loss,
    denoising_loss,
    examine,
    latent_encoder,
    prompt_batches,
    to_uint8,
    write_configs,
)
from nextgpt_jax.models.diffusion.clip_text import CLIPTextModel
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
    """Ink on paper as the autoencoder takes it: RGB in -1 .. 1."""
    return world.paper(ink).astype(np.float32) / 127.5 - 1.0


def vae(output: pathlib.Path, *, steps: int = 1000) -> None:
    """The decoder's autoencoder, with the scaling that gives its latents unit deviation."""
    model = AutoencoderKL(AutoencoderKLConfig.from_dict(VAE), rngs=nnx.Rngs(0))
    batches = _pixel_batches(np.random.default_rng(0), 16)
    model = fit("vae", model, autoencoder_loss, batches, steps=steps, lr=2e-3, ema=0.99)
    mean, _ = model.encode(jnp.asarray(pixels(world.ink()[world.TRAIN][:400])))
    config = VAE | {"scaling_factor": round(float(1.0 / mean.std()), 5)}
    save(model, stable_diffusion_table.VAE, config, output / "stable-diffusion" / "vae", DIFFUSERS_WEIGHTS)


def _latents(vae: AutoencoderKL, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents of augmented copies of the training scans, and their digits."""
    encode = latent_encoder(vae)
    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    rng = np.random.default_rng(1)
    encoded = [encode(pixels(world.augmented(ink, rng, 0.5))) for _ in range(copies)]
    return np.concatenate(encoded), np.tile(labels, copies)


class _Denoiser(nnx.Module):
    """The text encoder and the UNet, which are trained together."""

    def __init__(self, cfg: StableDiffusionConfig, *, rngs: nnx.Rngs):
        self.text_encoder = CLIPTextModel(cfg.text_encoder, rngs=rngs)
        self.unet = UNet2DConditionModel(cfg.unet, rngs=rngs)


def diffusion(output: pathlib.Path, *, steps: int = 2400) -> None:
    """The decoder's text encoder and UNet, on the latents of the autoencoder in the same folder."""
    folder = output / "stable-diffusion"
    vocabularies.save(vocabularies.caption_tokenizer(), folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    write_configs(folder, MODEL_INDEX, text_encoder=TEXT_ENCODER, unet=UNET)

    cfg = StableDiffusionConfig.from_pretrained(folder)
    autoencoder = load(lambda: AutoencoderKL(cfg.vae, rngs=nnx.Rngs(0)), folder / "vae", stable_diffusion_table.VAE)
    latents, labels = _latents(autoencoder, copies=16)
    captions, unconditional = all_captions(tokenizer, "image"), caption_ids(tokenizer, [""])[0]
    batches = prompt_batches(latents, labels, captions, unconditional, np.random.default_rng(2), 32)

    def loss(model: _Denoiser, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        prompts = model.text_encoder(batch["prompts"])
        return denoising_loss(cfg.scheduler, lambda x, t: model.unet(x, t, prompts), batch["latents"], key), {}

    model = fit("unet", _Denoiser(cfg, rngs=nnx.Rngs(1)), loss, batches, steps=steps, lr=1e-3, ema=0.998)
    tables = stable_diffusion_table
    save(model.text_encoder, tables.TEXT_ENCODER, TEXT_ENCODER, folder / "text_encoder", "model.safetensors")
    save(model.unet, tables.unet_table(cfg.unet), UNET, folder / "unet", DIFFUSERS_WEIGHTS)

    decoder = StableDiffusion(cfg, rngs=nnx.Rngs(0))
    decoder.text_encoder, decoder.unet, decoder.vae = model.text_encoder, model.unet, autoencoder
    digits = np.repeat(np.arange(10), 20)

    def verdict(images: np.ndarray) -> str:
        right = int((judge.classify(to_uint8(images)) == digits).sum())
        return f"{right} of {len(digits)} generated digits recognised"

    prompts, empty = (decoder.encode_prompt(jnp.asarray(ids)) for ids in (captions[:, 0], unconditional[None]))
    shape = cfg.latent_shape(world.SIZE, world.SIZE)
    examine(decoder, prompts[digits], empty, shape, verdict, guidance_scales=(1.0, 2.0, 3.0, 5.0, 7.5))
