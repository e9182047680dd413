"""The two losses of NExT-GPT (sections 4.2 and 4.3 of the paper), as sums over counts of the whole batch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

Batch = dict  # see data/batches.py
_CHUNK = 8  # media, or captions, that a frozen encoder takes at once


def counts(batch: Batch) -> dict[str, Array]:
    """What the sums of a batch (or of all its micro-batches) are divided by: target tokens, and groups a modality."""
    groups = {name: signals["mask"].sum() for name, signals in batch["signals"].items()}
    return {"tokens": batch["loss_mask"][..., 1:].sum(), **groups}


def loss(
    model,
    batch: Batch,
    denominators: dict[str, Array],
    *,
    alignment_weights: Mapping[str, float] | None = None,
    dropout_key: Array | None = None,
    remat: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Language loss plus weighted alignment loss, and their parts as metrics.

    Language: cross-entropy of the target tokens. Alignment: at each output position of a group, the L2 distance of the
    projected hidden states to the frozen text encoder's embedding of the caption, averaged over positions and groups,
    times the modality's weight (1 by default). A batch's media are either raw and encoded here ("input"), or encoder
    embeddings already ("embeddings"); captions are either ids for the text encoder ("captions") or its embeddings
    already ("targets").
    """
    media, positions = [], []
    dtype = model.llm.embed_tokens.embedding[...].dtype  # what frozen parts compute in
    for name, entry in batch["media"].items():
        embedded = entry.get("embeddings")
        if embedded is None:
            used = entry["positions"] < batch["tokens"].shape[1]

            def encode(x, name=name):
                return model.encode(name, x.astype(dtype))

            embedded = encode_used(encode, entry["input"], used)
        media.append(embedded)
        positions.append(entry["positions"])
    if media:
        embeddings = model.embed_prompt(batch["tokens"], jnp.concatenate(media, 1), jnp.concatenate(positions, 1))
    else:
        embeddings = model.embed_tokens(batch["tokens"])
    hidden, _ = model.llm(embeddings, dropout_key=dropout_key, remat=remat)

    mask = batch["loss_mask"][:, 1:]
    targets = batch["tokens"][:, 1:]
    logits = model.logits(hidden[:, :-1]).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    language = jnp.sum(losses * mask) / jnp.maximum(denominators["tokens"], 1)
    correct = jnp.sum((logits.argmax(-1) == targets) * mask) / jnp.maximum(denominators["tokens"], 1)

    alignment = jnp.zeros(())
    for name, signals in batch["signals"].items():
        distance = alignment_distance(model, name, hidden, batch["tokens"], signals)  # [B, G]
        mean = jnp.sum(distance * signals["mask"]) / jnp.maximum(denominators[name], 1)
        alignment = alignment + (alignment_weights or {}).get(name, 1.0) * mean
    total = language + alignment
    return total, {"loss": total, "loss_language": language, "loss_alignment": alignment, "token_accuracy": correct}


def encode_used(encode: Callable[[Array], Array], x: Array, used: Bool[Array, "b m"]) -> Array:
    """encode(x) of [B, M, ...] where `used`, zeros elsewhere, without gradient: [B, M, *what encode gives].

    In a mixed batch most slots of a modality are empty and its encoder may cost more than the language model, so the
    used slots are put in front and encoded chunk by chunk, as many chunks as there are.
    """
    b, m = used.shape
    chunk = min(_CHUNK, b * m)
    size = -(-b * m // chunk) * chunk
    order = jnp.argsort(~used.reshape(-1), stable=True)
    order = jnp.concatenate([order, jnp.full(size - b * m, b * m)])  # filling up: out of range
    flat = jnp.asarray(x).reshape(b * m, *x.shape[2:])

    def at(i):
        return jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)

    shape = jax.eval_shape(encode, jax.ShapeDtypeStruct((chunk, *x.shape[2:]), x.dtype))

    def body(i, found):
        return found.at[at(i)].set(encode(flat[at(i)]), mode="drop")  # an index out of range reads the last row

    count = (used.sum() + chunk - 1) // chunk
    found = jax.lax.fori_loop(0, count, body, jnp.zeros((b * m, *shape.shape[1:]), shape.dtype))
    found = jax.lax.stop_gradient(found).reshape(b, m, *shape.shape[1:])
    return jnp.where(used.reshape(b, m, *[1] * (found.ndim - 2)), found, 0)


def alignment_distance(model, modality: str, hidden: Array, tokens: Array, signals: dict[str, Array]) -> Array:
    """[B, G]: mean over output positions of the L2 distance to the caption's embedding, 0 gradient where unused."""
    b, g, n = signals["positions"].shape
    rows = jnp.arange(b)[:, None, None]
    at = jnp.where(signals["mask"][..., None], signals["positions"], 0)
    states = hidden[rows, at].reshape(b * g, n, -1)
    predicted = model.prompt_embeddings(modality, states, tokens[rows, at].reshape(b * g, n))
    wanted = signals.get("targets")
    if wanted is None:
        wanted = encode_used(model.decoders[modality].encode_prompt, signals["captions"], signals["mask"])
    difference = predicted.astype(jnp.float32) - wanted.reshape(predicted.shape).astype(jnp.float32)
    return optax.safe_norm(difference, 1e-6, axis=-1).mean(-1).reshape(b, g)
