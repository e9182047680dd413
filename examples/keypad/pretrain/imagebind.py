"""The encoder: scans against their captions."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from transformers import AutoTokenizer

import convert.imagebind
from examples.keypad import things, vocabularies, world
from examples.keypad.pretrain.common import all_captions, caption_ids, fit, save
from nextgpt_jax import media
from nextgpt_jax.imagebind import ImageBind, ImageBindConfig

IMAGEBIND = {
    "vision_embed_dim": 96,
    "vision_num_blocks": 4,
    "vision_num_heads": 4,
    "text_embed_dim": 64,
    "text_num_blocks": 2,
    "text_num_heads": 4,
    "out_embed_dim": 128,
    "kernel_size": [2, 4, 4],
    "video_frames": 2,
    "image_size": world.SIZE,
    "text_vocab_size": 624,
    "text_context_length": vocabularies.CONTEXT,
}


def _normalised(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) / 255.0 - media.CLIP_MEAN) / media.CLIP_STD


def _pair_batches(captions: np.ndarray, rng: np.random.Generator, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Augmented training scans, their digits, and one caption of every digit."""
    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    while True:
        rows = rng.integers(len(ink), size=size)
        spellings = rng.integers(captions.shape[1], size=10)
        yield {
            "images": _normalised(world.paper(world.augmented(ink[rows], rng))),
            "labels": labels[rows],
            "captions": captions[np.arange(10), spellings],
        }


def _contrastive_loss(model: ImageBind, batch: dict[str, Array], _: Array) -> tuple[Array, dict[str, Array]]:
    """CLIP's loss where every scan of a digit is a match for the digit's caption."""
    logits = model.embed("vision", batch["images"]) @ model.embed("text", batch["captions"]).T  # [B, 10]
    match = jax.nn.one_hot(batch["labels"], 10)
    to_text = optax.softmax_cross_entropy(logits, 0.95 * match + 0.005).mean()
    share = match.T / jnp.maximum(match.sum(0), 1.0)[:, None]
    to_image = optax.softmax_cross_entropy(logits.T, share).mean()
    accuracy = (logits.argmax(-1) == batch["labels"]).mean()
    return (to_text + to_image) / 2, {"accuracy": accuracy}


def imagebind(output: pathlib.Path, *, steps: int = 1500) -> None:
    """The encoder: scans against their captions."""
    vocabularies.save(vocabularies.caption_tokenizer(), output / "imagebind")
    tokenizer = AutoTokenizer.from_pretrained(output / "imagebind")
    model = ImageBind(ImageBindConfig.from_hub(IMAGEBIND), rngs=nnx.Rngs(0))
    batches = _pair_batches(all_captions(tokenizer, "image"), np.random.default_rng(0), 48)
    model = fit("imagebind", model, _contrastive_loss, batches, steps=steps, lr=1e-3, ema=0.998, weight_decay=0.1)
    save(model, convert.imagebind.table(), IMAGEBIND, output / "imagebind", "model.safetensors")

    images, labels = (a[world.HELD_OUT] for a in world.scans())
    seen = model.embed("vision", jnp.asarray(_normalised(images)))
    text = model.embed(
        "text", jnp.asarray(caption_ids(tokenizer, [things.caption(t) for t in things.everything("image")]))
    )
    right = int((np.asarray(seen @ text.T).argmax(-1) == labels).sum())
    print(f"held-out scans nearest to their caption: {right} of {len(labels)}")
