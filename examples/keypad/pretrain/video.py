"""The video decoder: its text encoder, then its UNet, which starts from the image decoder's.

It uses the image decoder's autoencoder, as the published models use Stable Diffusion's.
"""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from transformers import AutoTokenizer

from examples.keypad import judge, things, vocabularies, world
from examples.keypad.pretrain import images
from examples.keypad.pretrain.common import DIFFUSERS_WEIGHTS, all_captions, caption_ids, fit, load, save
from examples.keypad.pretrain.decoders import (
    PROMPT_NOISE,
    denoising_loss,
    examine,
    latent_encoder,
    prompt_batches,
    to_uint8,
    write_configs,
)
from examples.keypad.pretrain.texts import fit_text_encoder
from nextgpt_jax.models.diffusion.clip_text import CLIPTextModel
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusionConfig
from nextgpt_jax.models.diffusion.text_to_video import TextToVideo, TextToVideoConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConditionModel
from nextgpt_jax.models.diffusion.unet_3d import UNet3DConditionModel
from nextgpt_jax.models.diffusion.vae import AutoencoderKL
from nextgpt_jax.weights.tables import stable_diffusion as stable_diffusion_table
from nextgpt_jax.weights.tables import text_to_video as text_to_video_table

UNET = {
    "_class_name": "UNet3DConditionModel",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [48, 96],
    "down_block_types": ["CrossAttnDownBlock3D"] * 2,
    "up_block_types": ["CrossAttnUpBlock3D"] * 2,
    "layers_per_block": 1,
    "attention_head_dim": 12,
    "cross_attention_dim": 64,
    "norm_num_groups": 16,
    "sample_size": world.SIZE // 4,
}

MODEL_INDEX = {
    "_class_name": "TextToVideoSDPipeline",
    "_diffusers_version": "0.30.0",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "unet": ["diffusers", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def text_encoder(output: pathlib.Path, *, steps: int = 400) -> None:
    """The video decoder's tokenizer and text encoder."""
    folder = output / "text-to-video"
    vocabularies.save(vocabularies.caption_tokenizer(), folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    config = images.TEXT_ENCODER
    model = CLIPTextModel(TextToVideoConfig.component_classes["text_encoder"].from_dict(config), rngs=nnx.Rngs(0))

    def embed(model, ids):
        """The mean over the tokens after the end of the text, which attend to the whole text."""
        after = jnp.cumsum(ids == config["eos_token_id"], 1) > 0
        return (model(ids) * after[..., None]).sum(1) / after.sum(1, keepdims=True)

    captions, unconditional = all_captions(tokenizer, "video"), caption_ids(tokenizer, [""])[0]
    model = fit_text_encoder("video text encoder", model, embed, captions, unconditional, steps=steps)
    save(model, stable_diffusion_table.TEXT_ENCODER, config, folder / "text_encoder", "model.safetensors")


def _latents(vae: AutoencoderKL, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents of moving, augmented training scans, and the index in everything("video") of what each shows.

    Only two directions are encoded: reversed, they give the other two.
    """
    encode = latent_encoder(vae)
    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    rng = np.random.default_rng(1)
    rows = {thing[1:]: i for i, thing in enumerate(things.everything("video"))}
    latents, shown = [], []
    for _ in range(copies):
        for there, back in (("left", "right"), ("up", "down")):
            moving = world.moving(world.augmented(ink, rng, 0.5), [there] * len(ink), rng)
            encoded = [encode(images.pixels(video)) for video in moving]  # [F, h, w, c] each
            latents += [np.stack(encoded), np.stack(encoded)[:, ::-1]]
            shown += [[rows[digit, way] for digit in labels] for way in (there, back)]
    return np.concatenate(latents), np.concatenate(shown)


def _inflated(unet: UNet3DConditionModel, image_unet: UNet2DConditionModel) -> UNet3DConditionModel:
    """`unet` with the image UNet's weights in all layers on single frames; its layers over time change nothing yet."""
    known = dict(nnx.to_flat_state(nnx.state(image_unet)))
    state = nnx.state(unet)
    for path, leaf in nnx.to_flat_state(state):
        if path in known:
            leaf[...] = known[path][...]
        elif "proj_out" in path:  # of temporal attention; TemporalConvLayer starts at zero anyway
            leaf[...] = jnp.zeros_like(leaf[...])
    nnx.update(unet, state)
    return unet


def video(output: pathlib.Path, *, steps: int = 1300) -> None:
    """The video decoder's UNet, for the text encoder in the same folder and the autoencoder of the image decoder."""
    image_folder, folder = output / "stable-diffusion", output / "text-to-video"
    shutil.copytree(image_folder / "vae", folder / "vae", dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    write_configs(folder, MODEL_INDEX, unet=UNET)

    cfg, image_cfg = TextToVideoConfig.from_pretrained(folder), StableDiffusionConfig.from_pretrained(image_folder)
    tables = stable_diffusion_table
    autoencoder = load(lambda: AutoencoderKL(cfg.vae, rngs=nnx.Rngs(0)), folder / "vae", tables.VAE)
    texts = load(
        lambda: CLIPTextModel(cfg.text_encoder, rngs=nnx.Rngs(0)), folder / "text_encoder", tables.TEXT_ENCODER
    )
    image_unet = load(
        lambda: UNet2DConditionModel(image_cfg.unet, rngs=nnx.Rngs(0)),
        image_folder / "unet",
        tables.unet_table(image_cfg.unet),
    )
    captions, unconditional = all_captions(tokenizer, "video"), caption_ids(tokenizer, [""])
    prompts = [np.asarray(texts(ids.reshape(-1, ids.shape[-1]))) for ids in (captions, unconditional)]
    prompts[0] = prompts[0].reshape(*captions.shape, -1)
    latents, shown = _latents(autoencoder, copies=1)
    batches = prompt_batches(latents, shown, *prompts, np.random.default_rng(2), 8, PROMPT_NOISE)
    unet = _inflated(UNet3DConditionModel(cfg.unet, rngs=nnx.Rngs(1)), image_unet)

    def loss(unet: UNet3DConditionModel, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        return denoising_loss(cfg.scheduler, lambda x, t: unet(x, t, batch["prompts"]), batch["latents"], key), {}

    unet = fit("video unet", unet, loss, batches, steps=steps, lr=1e-3, ema=0.99)
    save(unet, text_to_video_table.UNET, UNET, folder / "unet", DIFFUSERS_WEIGHTS)
    decoder = TextToVideo(cfg, rngs=nnx.Rngs(0))
    decoder.text_encoder, decoder.unet, decoder.vae = texts, unet, autoencoder
    asked = things.everything("video") * 3

    def verdict(videos: np.ndarray) -> str:
        videos = to_uint8(videos)
        digits = sum(judge.moving_digit(v) == t.digit for v, t in zip(videos, asked))
        directions = sum(judge.motion(v) == t.direction for v, t in zip(videos, asked))
        return f"of {len(asked)} videos {digits} digits, {directions} directions right"

    shape = cfg.latent_shape(world.FRAMES, world.SIZE, world.SIZE)
    examine(decoder, jnp.tile(prompts[0][:, 0], (3, 1, 1)), prompts[1], shape, verdict)
