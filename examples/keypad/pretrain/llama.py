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

from examples.keypad import language, things, vocabularies
from examples.keypad.pretrain.common import fit, save
from nextgpt_jax import prompts, templates
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig
from nextgpt_jax.weights.tables import llama as llama_table

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 720,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 384,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}

_HELD_OUT = language.held_out()
_VOCABULARY = Vocabulary(LLAMA["vocab_size"])
_LENGTHS = (32, 48, 64, 96, 160, 256)  # conversations are padded to one of these


def in_words(human: str, seen: tuple[things.Thing, ...], reply: str | None) -> prompts.Turn:
    """A turn for a language model without media: captions instead of inputs, nothing instead of outputs."""
    captions = (things.caption(thing) for thing in seen)
    pieces = tuple(p if isinstance(p, str) else next(captions) for p in prompts.split_placeholders(human))
    return prompts.Turn(pieces, None if reply is None else (language.words_alone(reply),))


def _conversation(rng: random.Random) -> list[prompts.Turn]:
    kind = rng.random()
    if kind > 0.78:  # sums, counts and comparisons are the hardest to learn: several in a row
        turns = [language.talking(rng) for _ in range(rng.choice((1, 2, 3, 4)))]
        turns = [turn for turn in turns if language.normal(turn.human) not in _HELD_OUT]
        return [in_words(turn.human, turn.seen, turn.gpt) for turn in turns] or _conversation(rng)
    if kind < 0.12:  # as in the first two stages: describe a caption, repeat a caption
        thing = rng.choice(things.everything(rng.choice(tuple(language.MARKS))))
        spelling = rng.choice(things.captions(thing))
        if kind < 0.04:
            return [prompts.Turn((things.caption(thing), " generate a caption"), (spelling,))]
        return [prompts.Turn((spelling,), (spelling,))]
    return [in_words(turn.human, turn.seen, turn.gpt) for turn in language.conversation(rng)]


def _text_batches(tokenizer, rng: random.Random, conversations: int, tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of about `tokens` tokens, bucketed by length; human turns have a tenth of the weight in the loss."""
    buckets: dict[int, list] = {length: [] for length in _LENGTHS}
    for _ in range(conversations):
        encoded = templates.tokenize_conversation(_conversation(rng), tokenizer, _VOCABULARY)
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


def answers(model: Llama, tokenizer, asked: list[list[prompts.Turn]], room: int = 48, batch: int = 64) -> list[str]:
    """Greedy answers, as text, to conversations whose last turn is unanswered."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def decode(params, ids, lengths):
        model = nnx.merge(graphdef, params)
        rows, (size, length) = jnp.arange(len(ids)), ids.shape
        cache = model.init_cache(size, length + room)
        hidden, cache = model(model.embed_tokens(ids), cache=cache)
        first = model.logits(hidden[rows, lengths - 1]).argmax(-1)

        def step(carry, i):
            token, cache = carry
            hidden, cache = model(model.embed_tokens(token[:, None]), positions=(lengths + i)[:, None], cache=cache)
            return (model.logits(hidden[:, 0]).argmax(-1), cache), token

        return jax.lax.scan(step, (first, cache), jnp.arange(room))[1].T

    replies = []
    for at in range(0, len(asked), batch):
        encoded = [
            templates.tokenize_conversation(turns, tokenizer, _VOCABULARY).ids for turns in asked[at : at + batch]
        ]
        ids = np.zeros((batch, -(-max(map(len, encoded)) // 32) * 32), np.int32)
        for row, given in zip(ids, encoded):
            row[: len(given)] = given
        lengths = np.array([len(given) for given in encoded] + [1] * (batch - len(encoded)))
        tokens = np.asarray(decode(params, ids, lengths))[: len(encoded)]
        replies += [tokenizer.decode(row).split("\n###")[0] for row in tokens]
    return replies


def llama(output: pathlib.Path, *, steps: int = 5000) -> None:
    """Trains the tokenizer and the model, and prints its answers to held-out prompts."""
    vocabularies.save(vocabularies.language_model_tokenizer(vocabularies.text()), output / "llm")
    tokenizer = AutoTokenizer.from_pretrained(output / "llm")
    tokenizer.encode = functools.lru_cache(1_000_000)(tokenizer.encode)
    model = Llama(LlamaConfig.from_dict(LLAMA), rngs=nnx.Rngs(0))
    batches = _text_batches(tokenizer, random.Random(1), 150_000, 1536)
    model = fit("llama", model, _language_loss, batches, steps=steps, lr=2e-3, weight_decay=0.05)
    save(model, llama_table.BASE, LLAMA, output / "llm", "model.safetensors")
    examine(model, tokenizer)


def examine(model: Llama, tokenizer) -> None:
    """Prints how the model answers held-out prompts; media are captions, as in `in_words`."""
    fresh = random.Random(2)
    talk = [language.talking(fresh) for _ in range(200)]
    replies = answers(model, tokenizer, [[prompts.Turn((t.human,))] for t in talk])
    print(f"fresh talk: {sum(r == t.gpt for r, t in zip(replies, talk, strict=True))} of {len(talk)} right")
    for source in language.MODALITIES:
        for target in language.MODALITIES:
            requests = language.held_out_requests(source, target)
            replies = answers(model, tokenizer, [[in_words(r.human, r.seen, None)] for r in requests])
            wrong = [(q, r) for q, r in zip(requests, replies, strict=True) if not understood(q, r)]
            print(f"{source} -> {target}: {len(requests) - len(wrong)} of {len(requests)} understood", flush=True)
            for request, reply in wrong[:5]:
                print(f"  {request.human!r} {[things.caption(t) for t in request.seen]} -> {reply!r}")
    histories: list[list[prompts.Turn]] = [[] for _ in language.CONVERSATIONS]
    right = [True] * len(histories)
    for i in range(max(map(len, language.CONVERSATIONS))):
        rows = [k for k, conversation in enumerate(language.CONVERSATIONS) if i < len(conversation)]
        asked = [language.CONVERSATIONS[k][i] for k in rows]
        opened = [histories[k] + [in_words(r.human, r.seen, None)] for k, r in zip(rows, asked, strict=True)]
        for k, request, reply in zip(rows, asked, answers(model, tokenizer, opened), strict=True):
            histories[k].append(in_words(request.human, request.seen, reply))
            if not understood(request, reply):
                right[k] = False
                print(f"  conversation {k}, turn {i}: {request.human!r} -> {reply!r}")
    print(f"conversations: {sum(right)} of {len(right)} understood")
    for prompt, reply in zip(
        language.TEXT_ONLY, answers(model, tokenizer, [[prompts.Turn((p,))] for p in language.TEXT_ONLY]), strict=True
    ):
        print(f"  {prompt} -> {reply}")


def understood(request: language.Request, reply: str) -> bool:
    """True if the reply announces the requested media, or has the words of the answer."""
    if request.made:
        return reply == language.words_alone(language.made(*request.made).gpt)
    return request.accepts(reply) and not reply.startswith("Here")
