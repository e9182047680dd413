"""The two losses of NExT-GPT (sections 4.2 and 4.3 of the paper), as sums over counts of the whole batch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.sharding import batch_shards, constrain

Batch = dict  # see data/examples.py
BY_SOURCE = "by_source_"
CHUNK = 8  # media, or captions, per call of a frozen encoder
LOGITS_BYTES = 2**28  # of logits per device at a time


def target_counts(batch: Batch) -> dict[str, Array]:
    """The denominators of the losses of a batch: target tokens, and signal groups by modality."""
    groups = {name: signals["mask"].sum() for name, signals in batch["signals"].items()}
    return {"tokens": batch["loss_mask"][..., 1:].sum(), **groups}


def loss(
    model,
    batch: Batch,
    counts: dict[str, Array],
    *,
    alignment_weights: Mapping[str, float] | None = None,
    dropout_keys: Array | None = None,
    remat: str = "none",
) -> tuple[Array, dict[str, Array]]:
    """Language loss plus weighted alignment loss, and their parts as metrics. If the batch has `sources`, metrics named
    BY_SOURCE and the rest are sums over the examples of each, [S].

    Language: cross-entropy of the target tokens. Alignment: at each output position of a signal group, the L2 distance
    of the projected hidden states to the frozen text encoder's embedding of the caption, averaged over positions and
    groups, times the modality's weight (1 by default).

    Args:
      counts: `target_counts` of the whole batch, of which `batch` may be a micro-batch.
    """
    media, targets = encode_frozen(model, batch)
    options = dict(alignment_weights=alignment_weights, dropout_keys=dropout_keys, remat=remat)
    return loss_of_embedded(model, batch, media, targets, counts, **options)


def encode_frozen(model, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    """What the frozen encoders make of a batch, by modality: embeddings [B, M, k, E] of its input media, and text
    embeddings [B, G, L, d] of its captions; zeros where a slot is unused."""
    dtype = model.llm.embed_tokens.embedding[...].dtype  # of frozen parts

    def encode_media(name: str, entry: dict[str, Array]) -> Array:
        if "embeddings" in entry:  # prepared
            return entry["embeddings"]
        valid = entry["positions"] < batch["tokens"].shape[1]
        return encode_valid(lambda x: model.encode_media(name, x.astype(dtype)), entry["input"], valid)

    def encode_captions(name: str, signals: dict[str, Array]) -> Array:
        if "embeddings" in signals:
            return signals["embeddings"]
        return encode_valid(model.decoders[name].encode_prompt, signals["captions"], signals["mask"])

    media = {name: encode_media(name, entry) for name, entry in batch["media"].items()}
    targets = {name: encode_captions(name, signals) for name, signals in batch["signals"].items()}
    return media, targets


def loss_of_embedded(
    model,
    batch: Batch,
    media: Mapping[str, Float[Array, "b _ _ _"]],
    targets: Mapping[str, Float[Array, "b _ _ _"]],
    counts: dict[str, Array],
    *,
    alignment_weights: Mapping[str, float] | None = None,
    dropout_keys: Array | None = None,
    remat: str = "none",
) -> tuple[Array, dict[str, Array]]:
    """`loss` with the results of `encode_frozen`."""
    by_encoder: dict[str, list[tuple[Array, Array]]] = {}
    for name, embedded in media.items():
        b, _, k, width = embedded.shape
        positions = batch["media"][name]["positions"][..., None] + jnp.arange(k)
        found = embedded.reshape(b, -1, width), positions.reshape(b, -1)
        by_encoder.setdefault(MODALITIES[name].encoder, []).append(found)
    joined = {kind: tuple(jnp.concatenate(x, 1) for x in zip(*found)) for kind, found in by_encoder.items()}
    hidden, _ = model.llm(model.embed_prompt(batch["tokens"], joined), dropout_keys=dropout_keys, remat=remat)

    by_example = next_token_losses(model, hidden, batch["tokens"], batch["loss_mask"])
    language, correct = (total.sum() / jnp.maximum(counts["tokens"], 1) for total in by_example)
    sums = {"language": by_example[0], "tokens": batch["loss_mask"][:, 1:].sum(1)}  # of each example

    alignment, by_modality = jnp.zeros(()), {}
    for name, signals in batch["signals"].items():
        distance = alignment_distance(model, name, hidden, batch["tokens"], signals, targets[name])  # [B, G]
        distances = (distance * signals["mask"]).sum(1)
        sums |= {f"alignment_{name}": distances, f"groups_{name}": signals["mask"].sum(1)}
        mean = distances.sum() / jnp.maximum(counts[name], 1)
        by_modality[f"loss_alignment_{name}"] = mean
        alignment = alignment + (alignment_weights or {}).get(name, 1.0) * mean
    total = language + alignment
    metrics = {"loss": total, "loss_language": language, "loss_alignment": alignment, "token_accuracy": correct}
    if "sources" in batch:  # a sum, not a matrix product, which TPUs would round
        by_modality |= {
            f"{BY_SOURCE}{name}": jnp.where(batch["sources"], x[:, None], 0).sum(0) for name, x in sums.items()
        }
    return total, metrics | by_modality


def next_token_losses(
    model, hidden: Float[Array, "b t d"], tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]
) -> tuple[Array, Array]:
    """Sums over each example's targets in `mask`: of the cross-entropy, and of correct predictions (the target is the
    argmax). Returns [B] each.

    Logits are computed for a chunk of positions at a time, and again in the backward pass: [B, T, vocabulary] in
    float32 would be the largest array of the step.
    """
    head = model.llm.head()
    b, length = tokens.shape
    position_bytes = 4 * model.config.vocabulary.size * b // batch_shards(b)
    chunk = min(length, max(16, LOGITS_BYTES // position_bytes))
    chunks = -(-length // chunk)

    def split(x):  # [B, T, ...] to [chunks, B, chunk, ...]
        x = jnp.pad(x, ((0, 0), (0, chunks * chunk - length), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(b, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

    def shift(x):
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))

    @jax.checkpoint
    def add(totals, chunk):
        hidden, targets, mask = chunk
        return jax.tree.map(jnp.add, totals, _token_losses(model, head, hidden, targets, mask)), None

    zeros = constrain(jnp.zeros(b), "batch")
    return jax.lax.scan(add, (zeros, zeros), (split(hidden), split(shift(tokens)), split(shift(mask))))[0]


def _token_losses(model, head, hidden, targets, mask):
    """The sums for one chunk. Logits of base and new tokens are not concatenated: they are sharded differently."""
    base = constrain((hidden @ head.astype(hidden.dtype)).astype(jnp.float32), "batch", None, "vocab")
    new = model.new_logits(hidden).astype(jnp.float32)
    base_size = base.shape[-1]
    normalizer = jnp.logaddexp(jax.nn.logsumexp(base, -1), jax.nn.logsumexp(new, -1))

    def at(logits, ids):
        return jnp.take_along_axis(logits, jnp.clip(ids, 0, logits.shape[-1] - 1)[..., None], -1)[..., 0]

    chosen = jnp.where(targets < base_size, at(base, targets), at(new, targets - base_size))
    best = jnp.where(base.max(-1) >= new.max(-1), base.argmax(-1), base_size + new.argmax(-1))
    return jnp.sum((normalizer - chosen) * mask, 1), jnp.sum((best == targets) * mask, 1, dtype=jnp.float32)


def encode_valid(encode: Callable[[Array], Array], x: Array, valid: Bool[Array, "b m"]) -> Array:
    """encode(x) for x [B, M, ...] where `valid`, zeros elsewhere; without gradient. Returns [B, M, *shape of a result].

    In a mixed batch most slots of a modality are empty, and its encoder may cost more than the language model. So the
    valid slots are sorted first and encoded in fixed chunks, and empty chunks are skipped with lax.cond. On a mesh
    every shard of the batch does so with its own slots, for as many chunks as the fullest shard needs.
    """
    b, m = valid.shape
    shards = batch_shards(b)
    slots = b * m // shards
    chunk = min(CHUNK, slots)
    chunks = -(-slots // chunk)
    order = jnp.argsort(~valid.reshape(shards, slots), axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, chunks * chunk - slots)), constant_values=slots)  # padding: out of range
    order = constrain(order, "batch").reshape(shards, chunks, chunk).swapaxes(0, 1)
    x = constrain(jnp.asarray(x).reshape(shards, slots, *x.shape[2:]), "batch")
    count = (valid.reshape(shards, slots).sum(1).max() + chunk - 1) // chunk

    def encode_chunk(x):  # [shards, chunk, ...]
        found = encode(constrain(x.reshape(shards * chunk, *x.shape[2:]), "batch"))
        return found.reshape(shards, chunk, *found.shape[1:])

    shape = jax.eval_shape(encode_chunk, jax.ShapeDtypeStruct((shards, chunk, *x.shape[2:]), x.dtype))

    def body(_, i_and_order):
        i, places = i_and_order
        taken = jax.vmap(lambda x, at: x[at])(x, places)  # an index out of range takes the last slot
        return None, jax.lax.cond(i < count, encode_chunk, lambda _: jnp.zeros(shape.shape, shape.dtype), taken)

    _, found = jax.lax.scan(body, None, (jnp.arange(chunks), order))  # [chunks, shards, chunk, ...]
    places = order.swapaxes(0, 1).reshape(shards, -1)
    found = found.swapaxes(0, 1).reshape(shards, chunks * chunk, *shape.shape[2:])
    found = jax.vmap(lambda f, at: jnp.zeros((slots, *f.shape[1:]), f.dtype).at[at].set(f, mode="drop"))(found, places)
    found = jax.lax.stop_gradient(constrain(found, "batch")).reshape(b, m, *shape.shape[2:])
    return jnp.where(valid.reshape(b, m, *[1] * (found.ndim - 2)), found, 0)


def alignment_distance(
    model, modality: str, hidden: Array, tokens: Array, signals: dict[str, Array], targets: Float[Array, "b g _ _"]
) -> Float[Array, "b g"]:
    """The L2 distance of the projected hidden states of a signal group to its target, averaged over output positions.

    There is no gradient where a slot is unused.
    """
    b, g, n = signals["positions"].shape
    at = jnp.where(signals["mask"][..., None], signals["positions"], 0)
    # vmap rather than indexing with example numbers, for which XLA may exchange the batch between devices.
    states, ids = jax.vmap(lambda hidden, tokens, at: (hidden[at], tokens[at]))(hidden, tokens, at)
    predicted = model.prompt_embeddings(modality, states.reshape(b * g, n, -1), ids.reshape(b * g, n))
    difference = predicted.astype(jnp.float32) - targets.reshape(predicted.shape).astype(jnp.float32)
    return optax.safe_norm(difference, 1e-6, axis=-1).mean(-1).reshape(b, g)
