"""The language model, on the text of the world alone."""

import functools
import pathlib
import random
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from transformers import AutoTokenizer

import convert.llama
from examples.keypad import language, vocabularies
from examples.keypad.pretrain.common import fit, save
from nextgpt_jax import prompts
from nextgpt_jax.llama import Llama, LlamaConfig

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
