"""The audio decoder: its text encoder, its autoencoder of spectrograms, its vocoder, then the UNet.

Spectrograms have 16 frames of 256 samples, 32 ms. For a steady spectrogram, a convolutional vocoder's output repeats
every frame (except near the edges), and all frequencies of a telephone nearly have that period.
"""

import functools
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from transformers import AutoTokenizer

from examples.keypad import judge, things, vocabularies, world
from examples.keypad.pretrain import images
from examples.keypad.pretrain.common import DIFFUSERS_WEIGHTS, all_captions, caption_ids, fit, load, save
from examples.keypad.pretrain.decoders import (
    PROMPT_NOISE,
    autoencoder_loss,
    denoising_loss,
    examine,
    latent_encoder,
    prompt_batches,
    write_configs,
)
from examples.keypad.pretrain.texts import fit_text_encoder
from nextgpt_jax.models.diffusion.audioldm import AudioLDM, AudioLDMConfig
from nextgpt_jax.models.diffusion.clap_text import ClapTextConfig, ClapTextModelWithProjection
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConditionModel
from nextgpt_jax.models.diffusion.vae import AutoencoderKL, AutoencoderKLConfig
from nextgpt_jax.models.diffusion.vocoder import HifiGan, VocoderConfig
from nextgpt_jax.weights.tables import audioldm as audioldm_table

_PAD = 624  # the first id after the caption tokenizer's: attention masks padding, so it needs its own token

TEXT_ENCODER = {
    "architectures": ["ClapTextModelWithProjection"],
    "model_type": "clap_text_model",
    "vocab_size": _PAD + 1,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": _PAD + 1 + vocabularies.CONTEXT,  # positions start after the padding's id
    "type_vocab_size": 1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "projection_dim": 64,
    "projection_hidden_act": "relu",
    "pad_token_id": _PAD,
    "bos_token_id": 622,
    "eos_token_id": 623,
    "torch_dtype": "float16",
}

VAE = images.VAE | {"in_channels": 1, "out_channels": 1, "block_out_channels": [16, 32, 32], "sample_size": 32}

VOCODER = {
    "architectures": ["SpeechT5HifiGan"],
    "model_type": "hifigan",
    "model_in_dim": 32,
    "sampling_rate": world.RATE,
    "upsample_initial_channel": 128,
    "upsample_rates": [4, 4, 4, 4],
    "upsample_kernel_sizes": [8, 8, 8, 8],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 9], [1, 3, 9]],
    "leaky_relu_slope": 0.1,
    "normalize_before": False,
    "torch_dtype": "float16",
}

UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": [32, 64],
    "class_embed_type": "simple_projection",
    "projection_class_embeddings_input_dim": TEXT_ENCODER["projection_dim"],
    "class_embeddings_concat": True,
    "norm_num_groups": 16,
    "sample_size": 8,
}

MODEL_INDEX = {
    "_class_name": "AudioLDMPipeline",
    "_diffusers_version": "0.30.0",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "ClapTextModelWithProjection"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "vocoder": ["transformers", "SpeechT5HifiGan"],
}

SECONDS = 0.512
_HOP, _WINDOW = 256, 512  # samples
_LOWEST, _HIGHEST = 300.0, 2000.0  # Hz, of the mel bands
_FLOOR = 1e-3
VOCODER["spectrogram"] = {  # of `media.log_mel`, to edit tones
    "n_fft": _WINDOW,
    "center": False,
    "fmin": _LOWEST,
    "fmax": _HIGHEST,
    "mel_scale": "htk",
    "floor": _FLOOR,
    "gain": 4.0 / _WINDOW,
    "peak": 0.7,
}


def _mel(hertz):
    return 1127.0 * np.log1p(hertz / 700.0)


@functools.cache
def _mel_bands() -> np.ndarray:
    """Triangular bands, evenly spaced in mel. [bins, bands]."""
    bands = VOCODER["model_in_dim"]
    edges = np.linspace(_mel(_LOWEST), _mel(_HIGHEST), bands + 2)
    at = _mel(np.arange(_WINDOW // 2 + 1) * world.RATE / _WINDOW)[:, None]
    rise, fall = (at - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - at) / np.diff(edges)[1:]
    return np.maximum(np.minimum(rise, fall), 0.0).astype(np.float32)


def log_mel(waves: Float[np.ndarray, "b t"]) -> Float[np.ndarray, "b frames bands"]:
    """Logarithms of mel bands of magnitudes, one frame per 256 samples."""
    edge = (_WINDOW - _HOP) // 2
    padded = np.pad(waves, ((0, 0), (edge, edge)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=-1)[:, ::_HOP]
    magnitudes = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW) * (4.0 / _WINDOW)))
    return np.log(np.maximum(magnitudes @ _mel_bands(), _FLOOR)).astype(np.float32)


def _tones(keys: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The keys' tones: spectrograms of tones of random phase, and waves that start with phase 0."""
    time = np.arange(round(SECONDS * world.RATE)) / world.RATE
    levels = 0.35 * 10 ** (rng.uniform(-1.5, 1.5, (len(keys), 2)) / 20)
    angles = 2 * np.pi * np.array([world.frequencies(key) for key in keys])[..., None] * time  # [B, 2, T]
    phases = rng.uniform(0.0, 2 * np.pi, (len(keys), 2, 1))
    wave, heard = (np.einsum("bl,blt->bt", levels, np.sin(a)) for a in (angles, angles + phases))
    return log_mel(heard + 0.002 * rng.standard_normal(wave.shape)), wave.astype(np.float32)


def _tone_batches(rng: np.random.Generator, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while True:
        yield _tones(rng.integers(10, size=size), rng)


def text_encoder(output: pathlib.Path, *, steps: int = 400) -> None:
    """The audio decoder's tokenizer and text encoder."""
    folder = output / "audioldm"
    tokenizer = vocabularies.caption_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    vocabularies.save(tokenizer, folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    if tokenizer.pad_token_id != _PAD:
        raise RuntimeError(f"the padding has the id {tokenizer.pad_token_id}, not {_PAD}")
    model = ClapTextModelWithProjection(ClapTextConfig.from_dict(TEXT_ENCODER), rngs=nnx.Rngs(0))
    captions, unconditional = all_captions(tokenizer, "audio"), caption_ids(tokenizer, [""])[0]
    model = fit_text_encoder(
        "audio text encoder", model, lambda model, ids: model(ids), captions, unconditional, steps=steps
    )
    save(model, audioldm_table.TEXT_ENCODER, TEXT_ENCODER, folder / "text_encoder", "model.safetensors")


def audio_vae(output: pathlib.Path, *, steps: int = 500) -> None:
    """The audio decoder's autoencoder of spectrograms."""
    model = AutoencoderKL(AutoencoderKLConfig.from_dict(VAE), rngs=nnx.Rngs(0))
    batches = (mel[..., None] for mel, _ in _tone_batches(np.random.default_rng(0), 16))
    model = fit("audio vae", model, autoencoder_loss, batches, steps=steps, lr=2e-3, ema=0.99)
    mel, _ = _tones(np.arange(200) % 10, np.random.default_rng(1))
    mean, _ = model.encode(jnp.asarray(mel[..., None]))
    config = VAE | {"scaling_factor": round(float(1.0 / mean.std()), 5)}
    save(model, audioldm_table.VAE, config, output / "audioldm" / "vae", DIFFUSERS_WEIGHTS)


def _magnitudes(waves: Float[Array, "b t"], size: int) -> Float[Array, "b frames bins"]:
    starts = np.arange(0, waves.shape[-1] - size + 1, size // 4)
    frames = waves[:, starts[:, None] + np.arange(size)] * np.hanning(size)
    return jnp.sqrt(jnp.square(jnp.abs(jnp.fft.rfft(frames))) + 1e-6) * (4.0 / size)


def _vocoder_loss(model: HifiGan, batch: tuple[Array, Array], _: Array) -> tuple[Array, dict[str, Array]]:
    """Errors of the wave (only the edges determine its phase) and of its spectrum."""
    mel, wave = batch
    made = model(mel)
    error = jnp.square(made - wave).mean()
    spectral = sum(jnp.abs(_magnitudes(made, n) - _magnitudes(wave, n)).mean() for n in (256, 1024)) / 2
    return 4.0 * error + 8.0 * spectral, {"wave": error, "spectrum": spectral}


def vocoder(output: pathlib.Path, *, steps: int = 1500) -> None:
    """The audio decoder's vocoder, trained on errors of the waves alone, without a discriminator."""
    folder = output / "audioldm"
    cfg = AutoencoderKLConfig.from_dict(VAE)
    autoencoder = load(lambda: AutoencoderKL(cfg, rngs=nnx.Rngs(0)), folder / "vae", audioldm_table.VAE)
    decoded = jax.jit(lambda mel: autoencoder.decode(autoencoder.encode(mel[..., None])[0])[..., 0])

    def batches(rng):
        for mel, wave in _tone_batches(rng, 8):
            noisy = np.asarray(decoded(mel)) + rng.uniform(0.0, 0.1) * rng.standard_normal(mel.shape)
            yield noisy.astype(np.float32), wave

    model = HifiGan(VocoderConfig.from_dict(VOCODER), rngs=nnx.Rngs(0))
    model = fit("vocoder", model, _vocoder_loss, batches(np.random.default_rng(0)), steps=steps, lr=2e-3, ema=0.99)
    save(model, audioldm_table.VOCODER, VOCODER, folder / "vocoder", "model.safetensors")
    mel, _ = _tones(np.arange(200) % 10, np.random.default_rng(1))
    waves = np.asarray(model(decoded(mel)))
    right = sum(judge.key(wave, world.RATE) == i % 10 for i, wave in enumerate(waves))
    print(f"{right} of {len(waves)} tones recognised after autoencoder and vocoder")


def audio(output: pathlib.Path, *, steps: int = 1200) -> None:
    """The audio decoder's UNet, for the text encoder, autoencoder and vocoder in the same folder."""
    folder = output / "audioldm"
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    write_configs(folder, MODEL_INDEX, unet=UNET)

    cfg = AudioLDMConfig.from_pretrained(folder)
    tables = audioldm_table.tables(cfg)
    model = AudioLDM(cfg, rngs=nnx.Rngs(1))
    for name in ("text_encoder", "vae", "vocoder"):
        make = functools.partial(AudioLDM.component_classes[name], getattr(cfg, name))
        setattr(model, name, load(lambda make=make: make(rngs=nnx.Rngs(0)), folder / name, tables[name]))
    captions, unconditional = all_captions(tokenizer, "audio"), caption_ids(tokenizer, [""])
    prompts = [np.asarray(model.encode_prompt(ids.reshape(-1, ids.shape[-1]))) for ids in (captions, unconditional)]
    prompts[0] = prompts[0].reshape(*captions.shape[:2], -1)

    keys, encode = np.arange(2000) % 10, latent_encoder(model.vae)
    mel, _ = _tones(keys, np.random.default_rng(2))
    latents = np.concatenate([encode(part[..., None]) for part in np.split(mel, 20)])
    noise = PROMPT_NOISE / prompts[0].shape[-1] ** 0.5  # embeddings have unit length
    batches = prompt_batches(latents, keys, prompts[0], prompts[1][0, 0], np.random.default_rng(3), 32, noise)

    def loss(unet: UNet2DConditionModel, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        def predict(x, timesteps):
            return unet(x, timesteps, class_labels=batch["prompts"])

        return denoising_loss(cfg.scheduler, predict, batch["latents"], key), {}

    model.unet = fit("audio unet", model.unet, loss, batches, steps=steps, lr=1e-3, ema=0.998)
    save(model.unet, tables["unet"], UNET, folder / "unet", DIFFUSERS_WEIGHTS)
    digits = np.tile([thing.digit for thing in things.everything("audio")], 20)

    def verdict(waves: np.ndarray) -> str:
        right = sum(judge.key(wave, world.RATE) == key for wave, key in zip(waves, digits))
        return f"{right} of {len(digits)} generated tones recognised"

    prompt = jnp.tile(prompts[0][:, :1], (20, 1, 1))
    examine(model, prompt, prompts[1], cfg.latent_shape(SECONDS), verdict)
