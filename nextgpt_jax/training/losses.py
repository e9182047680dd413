"""The two losses of NExT-GPT (sections 4.2 and 4.3 of the paper), as sums over counts of the whole batch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.sharding import batch_shards, constrain

Batch = dict  # see data/examples.py
_CHUNK = 8  # media, or captions, that a frozen encoder takes at once
_LOGITS_BYTES = 2**28  # of a device's logits at once


def target_counts(batch: Batch) -> dict[str, Array]:
    """The denominators of the losses of a batch: target tokens, and signal groups by modality."""
    groups = {name: signals["mask"].sum() for name, signals in batch["signals"].items()}
    return {"tokens": batch["loss_mask"][..., 1:].sum(), **groups}


def loss(
    model,
    batch: Batch,
    denominators: dict[str, Array],
    *,
    alignment_weights: Mapping[str, float] | None = None,
    dropout_keys: Array | None = None,
    remat: str = "none",
) -> tuple[Array, dict[str, Array]]:
    """Language loss plus weighted alignment loss, and their parts as metrics.

    Language: cross-entropy of the target tokens. Alignment: at each output position of a group, the L2 distance of the
    projected hidden states to the frozen text encoder's embedding of the caption, averaged over positions and groups,
    times the modality's weight (1 by default). A batch's media are either raw and encoded here ("input"), or encoder
    embeddings already ("embeddings"); captions are either ids for the text encoder ("captions") or its embeddings
    already ("targets").
    """
    media: dict[str, list[tuple[Array, Array]]] = {}  # by kind of encoder
    dtype = model.llm.embed_tokens.embedding[...].dtype  # what frozen parts compute in
    for name, entry in batch["media"].items():
        embedded = entry.get("embeddings")
        if embedded is None:
            used = entry["positions"] < batch["tokens"].shape[1]

            def encode(x, name=name):
                return model.encode_media(name, x.astype(dtype))

            embedded = encode_used(encode, entry["input"], used)
        b, _, k, width = embedded.shape  # [B, M, k, E]
        positions = entry["positions"][..., None] + jnp.arange(k)
        found = embedded.reshape(b, -1, width), positions.reshape(b, -1)
        media.setdefault(MODALITIES[name].encoder, []).append(found)
    joined = {kind: tuple(jnp.concatenate(x, 1) for x in zip(*found)) for kind, found in media.items()}
    embeddings = model.embed_prompt(batch["tokens"], joined)
    hidden, _ = model.llm(embeddings, dropout_keys=dropout_keys, remat=remat)

    language, correct = (
        total / jnp.maximum(denominators["tokens"], 1)
        for total in next_token_losses(model, hidden, batch["tokens"], batch["loss_mask"])
    )

    alignment = jnp.zeros(())
    for name, signals in batch["signals"].items():
        distance = alignment_distance(model, name, hidden, batch["tokens"], signals)  # [B, G]
        mean = jnp.sum(distance * signals["mask"]) / jnp.maximum(denominators[name], 1)
        alignment = alignment + (alignment_weights or {}).get(name, 1.0) * mean
    total = language + alignment
    return total, {"loss": total, "loss_language": language, "loss_alignment": alignment, "token_accuracy": correct}


def next_token_losses(
    model, hidden: Float[Array, "b t d"], tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]
) -> tuple[Array, Array]:
    """Sums, over the targets in `mask`, of the cross-entropy and of how many are the likeliest token.

    Logits are made for a stretch of tokens at a time, and again in the backward pass: [B, T, vocabulary] in float32
    would be the largest array of the step.
    """
    head = model.llm.head()
    rows, length = tokens.shape
    width = 4 * model.config.vocabulary.size * rows // batch_shards(rows)
    chunk = min(length, max(16, _LOGITS_BYTES // width))
    chunks = -(-length // chunk)

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, chunks * chunk - length), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(rows, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

    def shift(x):
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))

    @jax.checkpoint
    def add(totals, stretch):
        hidden, targets, mask = stretch
        return jax.tree.map(jnp.add, totals, _token_losses(model, head, hidden, targets, mask)), None

    stretches = cut(hidden), cut(shift(tokens)), cut(shift(mask))
    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), stretches)[0]


def _token_losses(model, head, hidden, targets, mask):
    """The same for one stretch. Base and new tokens are not joined: each keeps its place on the mesh."""
    base = constrain((hidden @ head.astype(hidden.dtype)).astype(jnp.float32), "batch", None, "vocab")
    new = model.new_logits(hidden).astype(jnp.float32)
    count = base.shape[-1]
    likelihood = jnp.logaddexp(jax.nn.logsumexp(base, -1), jax.nn.logsumexp(new, -1))

    def at(logits, ids):
        return jnp.take_along_axis(logits, jnp.clip(ids, 0, logits.shape[-1] - 1)[..., None], -1)[..., 0]

    chosen = jnp.where(targets < count, at(base, targets), at(new, targets - count))
    best = jnp.where(base.max(-1) >= new.max(-1), base.argmax(-1), count + new.argmax(-1))
    return jnp.sum((likelihood - chosen) * mask), jnp.sum((best == targets) * mask, dtype=jnp.float32)


def encode_used(encode: Callable[[Array], Array], x: Array, used: Bool[Array, "b m"]) -> Array:
    """encode(x) of [B, M, ...] where `used`, zeros elsewhere, without gradient: [B, M, *what encode gives].

    In a mixed batch most slots of a modality are empty and its encoder may cost more than the language model, so the
    used slots are put in front and encoded chunk by chunk, as many chunks as there are. On a mesh every part of the
    batch does so with its own slots; all take as many chunks as the fullest part.
    """
    b, m = used.shape
    parts = batch_shards(b)
    slots = b * m // parts
    chunk = min(_CHUNK, slots)
    chunks = -(-slots // chunk)
    order = jnp.argsort(~used.reshape(parts, slots), axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, chunks * chunk - slots)), constant_values=slots)  # filling up: out of range
    order = constrain(order, "batch").reshape(parts, chunks, chunk).swapaxes(0, 1)
    x = constrain(jnp.asarray(x).reshape(parts, slots, *x.shape[2:]), "batch")
    count = (used.reshape(parts, slots).sum(1).max() + chunk - 1) // chunk

    def one(x):  # [parts, chunk, ...]
        found = encode(constrain(x.reshape(parts * chunk, *x.shape[2:]), "batch"))
        return found.reshape(parts, chunk, *found.shape[1:])

    shape = jax.eval_shape(one, jax.ShapeDtypeStruct((parts, chunk, *x.shape[2:]), x.dtype))

    def body(_, i_and_order):
        i, places = i_and_order
        taken = jax.vmap(lambda x, at: x[at])(x, places)  # an index out of range reads the last slot
        return None, jax.lax.cond(i < count, one, lambda _: jnp.zeros(shape.shape, shape.dtype), taken)

    _, found = jax.lax.scan(body, None, (jnp.arange(chunks), order))  # [chunks, parts, chunk, ...]
    places = order.swapaxes(0, 1).reshape(parts, -1)
    found = found.swapaxes(0, 1).reshape(parts, chunks * chunk, *shape.shape[2:])
    found = jax.vmap(lambda f, at: jnp.zeros((slots, *f.shape[1:]), f.dtype).at[at].set(f, mode="drop"))(found, places)
    found = jax.lax.stop_gradient(constrain(found, "batch")).reshape(b, m, *shape.shape[2:])
    return jnp.where(used.reshape(b, m, *[1] * (found.ndim - 2)), found, 0)


def alignment_distance(model, modality: str, hidden: Array, tokens: Array, signals: dict[str, Array]) -> Array:
    """[B, G]: mean over output positions of the L2 distance to the caption's embedding, 0 gradient where unused."""
    b, g, n = signals["positions"].shape
    at = jnp.where(signals["mask"][..., None], signals["positions"], 0)
    # Row by row: indexed with row numbers, a batch may be exchanged between devices that need nothing of it.
    states, ids = jax.vmap(lambda hidden, tokens, at: (hidden[at], tokens[at]))(hidden, tokens, at)
    predicted = model.prompt_embeddings(modality, states.reshape(b * g, n, -1), ids.reshape(b * g, n))
    wanted = signals.get("targets")
    if wanted is None:
        wanted = encode_used(model.decoders[modality].encode_prompt, signals["captions"], signals["mask"])
    difference = predicted.astype(jnp.float32) - wanted.reshape(predicted.shape).astype(jnp.float32)
    return optax.safe_norm(difference, 1e-6, axis=-1).mean(-1).reshape(b, g)
