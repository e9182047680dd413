"""Pretrains the frozen parts of the embedded world, which the repository holds already.

    python -m examples.keypad.pretrain llama|imagebind|vae|diffusion [--output examples/keypad/weights/base]

Each part is saved in the hub's layout: config.json, safetensors with PyTorch's names (float16), tokenizer.
"""

import argparse
import functools
import json
import pathlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from transformers import AutoTokenizer

import convert.imagebind
import convert.llama
import convert.stable_diffusion
from convert import engine
from convert.checkpoints import open_checkpoint
from convert.rules import Table
from examples.keypad import judge, language, vocabularies, world
from nextgpt_jax import media, prompts
from nextgpt_jax.diffusion.clip_text import CLIPTextModel
from nextgpt_jax.diffusion.schedulers import add_noise, training_target
from nextgpt_jax.diffusion.stable_diffusion import StableDiffusion, StableDiffusionConfig
from nextgpt_jax.diffusion.unet_2d import UNet2DConditionModel
from nextgpt_jax.diffusion.vae import AutoencoderKL, AutoencoderKLConfig
from nextgpt_jax.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.llama import Llama, LlamaConfig

_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
_FOLDER = pathlib.Path(__file__).parent / "weights" / "base"

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 720,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}

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


def fit(
    name: str,
    model: nnx.Module,
    loss: Callable[[nnx.Module, Any, Array], tuple[Array, dict[str, Array]]],
    batches: Iterator[Any],
    *,
    steps: int,
    lr: float,
    ema: float = 0.0,
    weight_decay: float = 0.01,
) -> nnx.Module:
    """AdamW with warm-up and cosine decay on all parameters; returns the trained model (their average if `ema`)."""
    graphdef, params = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, min(200, steps // 10), steps, 0.01 * lr)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=weight_decay))

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, average, opt, batch, key):
        def objective(params):
            return loss(nnx.merge(graphdef, params), batch, key)

        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: ema * a + (1.0 - ema) * p, average, params)
        return params, average, opt, {"loss": value, **metrics}

    opt = jax.jit(tx.init)(params)
    average = jax.tree.map(jnp.copy, params)
    key, begin, logged = jax.random.key(0), time.time(), 0.0
    for i in range(steps):
        params, average, opt, metrics = step(params, average, opt, next(batches), jax.random.fold_in(key, i))
        if time.time() - logged > 10.0 or i == steps - 1:
            values = "  ".join(f"{k} {float(v):.4f}" for k, v in metrics.items())
            logged = time.time()
            print(f"{name}  step {i + 1}/{steps}  {values}  {logged - begin:.0f} s", flush=True)
    return nnx.merge(graphdef, average if ema else params)


def save(model: nnx.Module, table: Table, config: dict, folder: pathlib.Path, weights: str) -> None:
    """Writes a part in the hub's layout, weights in float16."""
    engine.save_safetensors(engine.export(nnx.state(model), table), folder / weights, dtype=np.float16)
    _write_json(folder / "config.json", config)
    print(f"saved {folder}", flush=True)


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def _caption_ids(tokenizer, captions: list[str]) -> np.ndarray:
    """Padded to the encoders' context. [N, CONTEXT]."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=vocabularies.CONTEXT)["input_ids"]
    return np.array(ids, np.int32)


def _all_captions(tokenizer) -> np.ndarray:
    """Ids of every spelling of every digit's caption. [10, spellings, CONTEXT]."""
    return np.stack([_caption_ids(tokenizer, list(language.captions(d))) for d in range(10)])


# --- LLaMA ----------------------------------------------------------------------------------------------------------


def in_words(turn: language.Turn) -> prompts.Turn:
    """The turn as a language model without media reads it: captions for what is shown, nothing for drawings."""
    seen = iter(turn.seen)
    pieces = prompts.split_marks(turn.human)
    human = tuple(p if isinstance(p, str) else language.caption(next(seen)) for p in pieces)
    return prompts.Turn(human, (turn.gpt.replace(language.IMAGE, ""),))


def _conversations(rng: random.Random) -> list[prompts.Turn]:
    if rng.random() < 0.08:  # the generation stage starts from a caption that is said again
        caption = rng.choice(language.captions(rng.randrange(10)))
        return [prompts.Turn((caption,), (caption,))]
    return [in_words(turn) for turn in language.conversation(rng)]


def _text_batches(tokenizer, rng: random.Random, conversations: int, tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of about `tokens` tokens, of conversations of like length; human turns count a tenth in the loss."""
    buckets: dict[int, list] = {32: [], 64: [], 96: []}
    for _ in range(conversations):
        encoded = prompts.encode(_conversations(rng), tokenizer, LLAMA["vocab_size"])
        fitting = [length for length in buckets if len(encoded.ids) <= length]
        if fitting:
            buckets[fitting[0]].append((encoded.ids, np.where(encoded.loss, 1.0, 0.1)))
    lengths = [length for length, rows in buckets.items() for _ in range(len(rows) * length // tokens)]
    while True:
        length = rng.choice(lengths)
        rows = rng.sample(buckets[length], tokens // length)
        ids, weights = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.float32)
        for i, (row, weight) in enumerate(rows):
            ids[i, : len(row)], weights[i, : len(row)] = row, weight
        yield {"ids": ids, "weights": weights}


def _language_loss(model: Llama, batch: dict[str, Array], _: Array) -> tuple[Array, dict[str, Array]]:
    hidden, _ = model(model.embed_tokens(batch["ids"]))
    losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden[:, :-1]), batch["ids"][:, 1:])
    weights = batch["weights"][:, 1:]
    return jnp.sum(losses * weights) / jnp.sum(weights), {}


def answers(model: Llama, tokenizer, questions: list[prompts.Turn], length: int = 96) -> list[str]:
    """Greedy answers in plain text, for a look at the base model."""
    encoded = [prompts.encode([q], tokenizer, LLAMA["vocab_size"]).ids for q in questions]
    ids = jnp.array([row + [0] * (length - len(row)) for row in encoded])
    begin = jnp.array([len(row) for row in encoded])
    graphdef, params = nnx.split(model)

    @jax.jit
    def decode(params, ids, begin):
        model = nnx.merge(graphdef, params)

        def body(i, ids):
            hidden, _ = model(model.embed_tokens(ids))
            token = model.logits(hidden[:, i - 1]).argmax(-1)
            return ids.at[:, i].set(jnp.where(i < begin, ids[:, i], token))

        return jax.lax.fori_loop(1, length, body, ids)

    replies = [tokenizer.decode(row[b:]) for row, b in zip(np.asarray(decode(params, ids, begin)), begin)]
    return [reply.split("\n###")[0] for reply in replies]


def llama(output: pathlib.Path, *, steps: int = 1800) -> None:
    """The language model, on the text of the world alone."""
    vocabularies.save(vocabularies.language_model_tokenizer(vocabularies.text()), output / "llm")
    tokenizer = AutoTokenizer.from_pretrained(output / "llm")
    tokenizer.encode = functools.lru_cache(1_000_000)(tokenizer.encode)
    model = Llama(LlamaConfig.from_hub(LLAMA), rngs=nnx.Rngs(0))
    batches = _text_batches(tokenizer, random.Random(1), 100_000, 1536)
    model = fit("llama", model, _language_loss, batches, steps=steps, lr=2e-3, weight_decay=0.05)
    save(model, convert.llama.BASE, LLAMA, output / "llm", "model.safetensors")

    fresh = random.Random(2)
    talk = [language.talking(fresh) for _ in range(200)]
    replies = answers(model, tokenizer, [prompts.Turn((t.human,)) for t in talk])
    print(f"fresh small talk and questions: {sum(r == t.gpt for r, t in zip(replies, talk))} of {len(talk)} right")
    asked = [(p.format(digit=w), w) for p in language.HELD_OUT_DRAWING for w in language.WORDS]
    replies = answers(model, tokenizer, [prompts.Turn((p,)) for p, _ in asked])
    print(f"held-out drawing requests: {sum(w in r for r, (_, w) in zip(replies, asked))} of {len(asked)} understood")
    shown = [
        ((language.caption(d), f"\n{q}"), w) for q in language.HELD_OUT_QUESTIONS for d, w in enumerate(language.WORDS)
    ]
    replies = answers(model, tokenizer, [prompts.Turn(q) for q, _ in shown])
    print(
        f"held-out questions about captions: {sum(w in r for r, (_, w) in zip(replies, shown))} of {len(shown)} right"
    )
    for prompt, reply in zip(
        language.TEXT_ONLY, answers(model, tokenizer, [prompts.Turn((p,)) for p in language.TEXT_ONLY])
    ):
        print(f"  {prompt} -> {reply}")


# --- ImageBind ------------------------------------------------------------------------------------------------------


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
    batches = _pair_batches(_all_captions(tokenizer), np.random.default_rng(0), 48)
    model = fit("imagebind", model, _contrastive_loss, batches, steps=steps, lr=1e-3, ema=0.998, weight_decay=0.1)
    save(model, convert.imagebind.table(), IMAGEBIND, output / "imagebind", "model.safetensors")

    images, labels = (a[world.HELD_OUT] for a in world.scans())
    seen = model.embed("vision", jnp.asarray(_normalised(images)))
    text = model.embed("text", jnp.asarray(_caption_ids(tokenizer, [language.caption(d) for d in range(10)])))
    right = int((np.asarray(seen @ text.T).argmax(-1) == labels).sum())
    print(f"held-out scans nearest to their caption: {right} of {len(labels)}")


# --- latent diffusion -----------------------------------------------------------------------------------------------


def _pixel_batches(rng: np.random.Generator, size: int) -> Iterator[np.ndarray]:
    ink = world.ink()[world.TRAIN]
    while True:
        yield _pixels(world.augmented(ink[rng.integers(len(ink), size=size)], rng, 0.7))


def _pixels(ink: np.ndarray) -> np.ndarray:
    return world.paper(ink).astype(np.float32) / 127.5 - 1.0


def _autoencoder_loss(model: AutoencoderKL, pixels: Array, key: Array) -> tuple[Array, dict[str, Array]]:
    mean, logvar = model.encode(pixels)
    latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    error = model.decode(latents) - pixels
    divergence = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).mean()
    return jnp.abs(error).mean() + jnp.square(error).mean() + 1e-3 * divergence, {"rms": jnp.sqrt((error**2).mean())}


def vae(output: pathlib.Path, *, steps: int = 1000) -> None:
    """The decoder's autoencoder, with the scaling that gives its latents unit deviation."""
    model = AutoencoderKL(AutoencoderKLConfig.from_hub(VAE), rngs=nnx.Rngs(0))
    batches = _pixel_batches(np.random.default_rng(0), 16)
    model = fit("vae", model, _autoencoder_loss, batches, steps=steps, lr=2e-3, ema=0.99)
    mean, _ = model.encode(jnp.asarray(_pixels(world.ink()[world.TRAIN][:400])))
    config = VAE | {"scaling_factor": round(float(1.0 / mean.std()), 5)}
    save(model, convert.stable_diffusion.VAE, config, output / "stable-diffusion" / "vae", _DIFFUSERS_WEIGHTS)


def _latents(vae: AutoencoderKL, scale: float, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Scaled latents of augmented copies of the training scans, and their digits."""
    graphdef, params = nnx.split(vae)
    encode = jax.jit(lambda params, x: nnx.merge(graphdef, params).encode(x)[0] * scale)
    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    rng = np.random.default_rng(1)
    encoded = [np.asarray(encode(params, _pixels(world.augmented(ink, rng, 0.5)))) for _ in range(copies)]
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


def diffusion(output: pathlib.Path, *, steps: int = 2400) -> None:
    """The decoder's text encoder and UNet, on the latents of the autoencoder in the same folder."""
    folder = output / "stable-diffusion"
    vocabularies.save(vocabularies.caption_tokenizer(), folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    _write_json(folder / "text_encoder" / "config.json", TEXT_ENCODER)
    _write_json(folder / "unet" / "config.json", UNET)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", MODEL_INDEX)

    cfg = StableDiffusionConfig.from_hub(folder)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: AutoencoderKL(cfg.vae, rngs=nnx.Rngs(0))))
    weights = engine.load(open_checkpoint(folder / "vae"), abstract, convert.stable_diffusion.VAE)
    autoencoder = nnx.merge(graphdef, weights)
    latents, labels = _latents(autoencoder, cfg.vae.scaling_factor, copies=16)
    captions, unconditional = _all_captions(tokenizer), _caption_ids(tokenizer, [""])[0]
    batches = _latent_batches(latents, labels, captions, unconditional, np.random.default_rng(2), 32)

    def loss(model: _Denoiser, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        x, (noise_key, time_key) = batch["latents"], jax.random.split(key)
        noise = jax.random.normal(noise_key, x.shape)
        timesteps = jax.random.randint(time_key, (len(x),), 0, cfg.scheduler.num_train_timesteps)
        noisy = add_noise(cfg.scheduler, x, noise, timesteps)
        predicted = model.unet(noisy, timesteps, model.text_encoder(batch["captions"]))
        return jnp.square(predicted - training_target(cfg.scheduler, x, noise, timesteps)).mean(), {}

    model = fit("unet", _Denoiser(cfg, rngs=nnx.Rngs(1)), loss, batches, steps=steps, lr=1e-3, ema=0.998)
    tables = convert.stable_diffusion
    save(model.text_encoder, tables.TEXT_ENCODER, TEXT_ENCODER, folder / "text_encoder", "model.safetensors")
    save(model.unet, tables.unet_table(cfg.unet), UNET, folder / "unet", _DIFFUSERS_WEIGHTS)

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
        images = draw(params, noise, model.config.scheduler.plan(20), jnp.full(len(asked), guidance))
        right = int((judge.classify(np.round(np.asarray(images) * 255).astype(np.uint8)) == asked).sum())
        print(f"guidance {guidance}: {right} of {len(asked)} generated digits recognised", flush=True)


PARTS = {"llama": llama, "imagebind": imagebind, "vae": vae, "diffusion": diffusion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=pathlib.Path, default=_FOLDER)
    parser.add_argument("--steps", type=int, help="train for another number of steps")
    args = parser.parse_args()
    PARTS[args.part](args.output, **({"steps": args.steps} if args.steps else {}))


if __name__ == "__main__":
    main()
