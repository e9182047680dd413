"""The video decoder: its text encoder, then its UNet, which starts from the image decoder's.

Its autoencoder is the image decoder's, as that of the published models is Stable Diffusion's.
"""

import pathlib
import shutil
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from transformers import AutoTokenizer

from examples.keypad import judge, things, vocabularies, world
from examples.keypad.pretrain import images
from examples.keypad.pretrain.common import DIFFUSERS_WEIGHTS, all_captions, caption_ids, fit, load, save, write_json
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
        """The mean from the end of the text on: causal attention shows the whole text to these tokens."""
        after = jnp.cumsum(ids == config["eos_token_id"], 1) > 0
        return (model(ids) * after[..., None]).sum(1) / after.sum(1, keepdims=True)

    captions, unconditional = all_captions(tokenizer, "video"), caption_ids(tokenizer, [""])[0]
    model = fit_text_encoder("video text encoder", model, embed, captions, unconditional, steps=steps)
    save(model, stable_diffusion_table.TEXT_ENCODER, config, folder / "text_encoder", "model.safetensors")


def _latents(vae: AutoencoderKL, scale: float, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Scaled latents of augmented training scans that move, and what each shows: rows of everything("video").

    Backwards, a digit moves the other way: only half of the directions are encoded.
    """
    graphdef, params = nnx.split(vae)
    encode = jax.jit(lambda params, x: nnx.merge(graphdef, params).encode(x)[0] * scale)
    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    rng = np.random.default_rng(1)
    rows = {thing[1:]: i for i, thing in enumerate(things.everything("video"))}
    latents, shown = [], []
    for _ in range(copies):
        for there, back in (("left", "right"), ("up", "down")):
            moving = world.moving(world.augmented(ink, rng, 0.5), [there] * len(ink), rng)
            encoded = [np.asarray(encode(params, images.pixels(video))) for video in moving]  # [F, h, w, c] each
            latents += [np.stack(encoded), np.stack(encoded)[:, ::-1]]
            shown += [[rows[digit, way] for digit in labels] for way in (there, back)]
    return np.concatenate(latents), np.concatenate(shown)


def _inflated(unet: UNet3DConditionModel, image_unet: UNet2DConditionModel) -> UNet3DConditionModel:
    """With the image UNet's weights in all layers that work on single frames; those over time change nothing yet."""
    known = dict(nnx.to_flat_state(nnx.state(image_unet)))
    state = nnx.state(unet)
    for path, leaf in nnx.to_flat_state(state):
        if path in known:
            leaf[...] = known[path][...]
        elif "proj_out" in path:  # of attention over time: TemporalConvLayer starts at zero by itself
            leaf[...] = jnp.zeros_like(leaf[...])
    nnx.update(unet, state)
    return unet


def _latent_batches(latents, shown, prompts, rng, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Latents with the embedding of a spelling of their caption, half of the time the usual one; empty for a tenth."""
    captions, unconditional = prompts
    while True:
        rows = rng.integers(len(latents), size=size)
        spellings = rng.integers(captions.shape[1], size=size) * (rng.random(size) < 0.5)
        embeds = captions[shown[rows], spellings]
        embeds = embeds + images.PROMPT_NOISE * rng.standard_normal(embeds.shape).astype(np.float32)
        embeds[rng.random(size) < 0.1] = unconditional
        yield {"latents": latents[rows], "prompts": embeds}


def video(output: pathlib.Path, *, steps: int = 1300) -> None:
    """The video decoder's UNet, for the text encoder in the same folder and the autoencoder of the image decoder."""
    image_folder, folder = output / "stable-diffusion", output / "text-to-video"
    shutil.copytree(image_folder / "vae", folder / "vae", dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    write_json(folder / "unet" / "config.json", UNET)
    write_json(folder / "scheduler" / "scheduler_config.json", images.SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)

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
    latents, shown = _latents(autoencoder, cfg.vae.scaling_factor, copies=1)
    batches = _latent_batches(latents, shown, prompts, np.random.default_rng(2), 8)
    unet = _inflated(UNet3DConditionModel(cfg.unet, rngs=nnx.Rngs(1)), image_unet)

    def loss(unet: UNet3DConditionModel, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        return images.denoising_loss(
            cfg.scheduler, lambda x, t: unet(x, t, batch["prompts"]), batch["latents"], key
        ), {}

    unet = fit("video unet", unet, loss, batches, steps=steps, lr=1e-3, ema=0.99)
    save(unet, text_to_video_table.UNET, UNET, folder / "unet", DIFFUSERS_WEIGHTS)
    decoder = TextToVideo(cfg, rngs=nnx.Rngs(0))
    decoder.text_encoder, decoder.unet, decoder.vae = texts, unet, autoencoder
    _judge(decoder, prompts[0][:, 0], prompts[1])


def _judge(model: TextToVideo, captions: np.ndarray, unconditional: np.ndarray, copies: int = 3) -> None:
    """Prints how many generated videos show what they should, by guidance."""
    graphdef, params = nnx.split(model)
    draw = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params).generate(*inputs))
    asked = things.everything("video") * copies
    prompt = jnp.tile(captions, (copies, 1, 1))
    shape = model.config.latent_shape(world.FRAMES, world.SIZE, world.SIZE)
    noise = jax.random.normal(jax.random.key(7), (len(asked), *shape))
    for guidance in (1.0, 2.0, 3.0, 5.0):
        scales = jnp.full(len(asked), guidance)
        videos = draw(params, prompt, unconditional, noise, model.config.scheduler.sampler_table(20), scales)
        videos = np.round(np.asarray(videos) * 255).astype(np.uint8)
        digits = sum(judge.moving_digit(v) == t.digit for v, t in zip(videos, asked))
        directions = sum(judge.motion(v) == t.direction for v, t in zip(videos, asked))
        print(f"guidance {guidance}: of {len(asked)} videos {digits} digits, {directions} directions right", flush=True)
