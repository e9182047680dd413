"""The encoder: scans, movies and tones against their captions."""

import functools
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from transformers import AutoTokenizer

from examples.keypad import things, vocabularies, world
from examples.keypad.pretrain.common import all_captions, fit, save
from nextgpt_jax import media
from nextgpt_jax.models.encoders.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.weights.tables import imagebind as imagebind_table

IMAGEBIND = {
    "modalities": ["vision", "text", "audio"],
    "vision_embed_dim": 96,
    "vision_num_blocks": 4,
    "vision_num_heads": 4,
    "kernel_size": [2, 4, 4],
    "video_frames": 2,
    "image_size": world.SIZE,
    "text_embed_dim": 64,
    "text_num_blocks": 2,
    "text_num_heads": 4,
    "text_vocab_size": 624,
    "text_context_length": vocabularies.CONTEXT,
    "audio_embed_dim": 64,
    "audio_num_blocks": 2,
    "audio_num_heads": 4,
    "audio_kernel_size": 16,
    "audio_stride": 16,
    "audio_num_mel_bins": 128,
    "audio_target_len": 204,
    "audio_drop_path": 0.0,
    "out_embed_dim": 128,
    "video_clips": 1,
    "video_crops": 1,
    "audio_clips": 1,
    "clip_seconds": 2.0,
}
CONFIG = ImageBindConfig.from_dict(IMAGEBIND)
KINDS = ("image", "video", "audio")
THINGS = [thing for name in KINDS for thing in things.everything(name)]
NUMBER = {thing: i for i, thing in enumerate(THINGS)}
_TONES = 2400  # generated once and reused


def _normalized(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) / 255.0 - media.CLIP_MEAN) / media.CLIP_STD


def _movies(ink, labels, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """The encoder's frames of movies, the first and last one [B, 2, H, W, 3], and the things' numbers."""
    directions = rng.choice(things.DIRECTIONS, len(ink))
    frames = world.paper(world.moving(ink, list(directions), rng, frames=2))
    return frames, [NUMBER["video", int(d), str(way)] for d, way in zip(labels, directions)]


def _tones(rng: np.random.Generator, count: int) -> tuple[Float[np.ndarray, "n mel frames"], np.ndarray]:
    """Preprocessed tones and the things' numbers."""
    keys = rng.integers(10, size=count)
    heard = (media.resample(world.tone(int(key), rng), world.RATE, 16_000) for key in keys)
    spectrograms = np.concatenate([media.preprocess("audio", samples, CONFIG) for samples in heard])
    return spectrograms, np.array([NUMBER["audio", int(key), ""] for key in keys])


def _batches(captions: np.ndarray, rng: np.random.Generator, size: int) -> Iterator[dict[str, np.ndarray]]:
    """`size` media: augmented training scans, twice as many movies, half as many tones; and a caption of everything."""
    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    tones, keys = _tones(rng, _TONES)
    while True:
        still, moving, heard = (
            rng.integers(len(ink), size=2 * size // 7),
            rng.integers(len(ink), size=4 * size // 7),
            rng.integers(_TONES, size=size // 7),
        )
        images = world.paper(world.augmented(ink[still], rng))
        frames, movies = _movies(world.augmented(ink[moving], rng), labels[moving], rng)
        clips = np.concatenate([np.repeat(images[:, None], 2, axis=1), frames])
        grain = rng.normal(0.0, rng.uniform(0.0, 0.06), clips.shape)  # like compression artifacts
        yield {
            "vision": (_normalized(clips) + grain).astype(np.float32),
            "audio": tones[heard],
            "things": np.concatenate([[NUMBER["image", int(d), ""] for d in labels[still]], movies, keys[heard]]),
            "captions": captions[np.arange(len(captions)), rng.integers(captions.shape[1], size=len(captions))],
        }


def _contrastive_loss(model: ImageBind, batch: dict[str, Array], _: Array) -> tuple[Array, dict[str, Array]]:
    """CLIP's loss where every medium that shows a thing is a match for the thing's caption."""
    shown = jnp.concatenate([model.embed("vision", batch["vision"]), model.embed("audio", batch["audio"])])
    logits = shown @ model.embed("text", batch["captions"]).T  # [B, things]
    count = logits.shape[1]
    match = jax.nn.one_hot(batch["things"], count)
    to_text = optax.softmax_cross_entropy(logits, 0.95 * match + 0.05 / count).mean()
    present = match.sum(0) > 0
    share = match.T / jnp.maximum(match.sum(0), 1.0)[:, None]
    to_media = jnp.sum(optax.softmax_cross_entropy(logits.T, share) * present) / present.sum()
    kinds = jnp.array([KINDS.index(thing.modality) for thing in THINGS])[batch["things"]]
    right = logits.argmax(-1) == batch["things"]
    return (to_text + to_media) / 2, {name: right.mean(where=kinds == i) for i, name in enumerate(KINDS)}


def imagebind(output: pathlib.Path, *, steps: int = 3000) -> None:
    """The encoder: scans, movies and tones against their captions."""
    vocabularies.save(vocabularies.caption_tokenizer(), output / "imagebind")
    tokenizer = AutoTokenizer.from_pretrained(output / "imagebind")
    captions = np.concatenate([all_captions(tokenizer, name) for name in KINDS])
    model = ImageBind(CONFIG, rngs=nnx.Rngs(0))
    batches = _batches(captions, np.random.default_rng(0), 98)
    model = fit("imagebind", model, _contrastive_loss, batches, steps=steps, lr=1e-3, ema=0.998, weight_decay=0.1)
    save(model, imagebind_table.table(CONFIG.modalities), IMAGEBIND, output / "imagebind", "model.safetensors")

    ink, labels = world.ink()[world.HELD_OUT], world.scans()[1][world.HELD_OUT]
    rng = np.random.default_rng(1)
    frames, movies = _movies(ink, labels, rng)
    tones, keys = _tones(rng, 300)
    text = model.embed("text", jnp.asarray(captions[:, 0]))
    shown = {
        "scans": ("vision", _normalized(world.paper(ink)), np.array([NUMBER["image", int(d), ""] for d in labels])),
        "movies": ("vision", _normalized(frames), np.array(movies)),
        "tones": ("audio", tones, keys),
    }
    embed = jax.jit(functools.partial(_embed, nnx.split(model)[0]), static_argnums=1)
    for name, (branch, x, numbers) in shown.items():
        found = np.asarray(embed(nnx.state(model), branch, jnp.asarray(x, jnp.float32)) @ text.T).argmax(-1)
        print(f"held-out {name} nearest to their caption: {(found == numbers).sum()} of {len(numbers)}", flush=True)
        if name == "movies":
            same = [THINGS[a].direction == THINGS[b].direction for a, b in zip(found, numbers)]
            print(f"  {sum(same)} of the directions are right", flush=True)


def _embed(graphdef, state, branch: str, x: Array) -> Array:
    return nnx.merge(graphdef, state).embed(branch, x)
