"""The two losses of NExT-GPT (sections 4.2 and 4.3 of the paper), as sums over counts of the whole batch."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from nextgpt_jax.modalities import MODALITIES

Batch = dict  # see data/batches.py


def counts(batch: Batch) -> dict[str, Array]:
    """What the sums of a batch (or of all its micro-batches) are divided by: target tokens, and groups a modality."""
    groups = {name: signals["mask"].sum() for name, signals in batch["signals"].items()}
    return {"tokens": batch["loss_mask"][..., 1:].sum(), **groups}


def loss(
    model,
    batch: Batch,
    denominators: dict[str, Array],
    *,
    alignment_weight: float = 1.0,
    dropout_key: Array | None = None,
    remat: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Language loss plus weighted alignment loss, and their parts as metrics.

    Language: cross-entropy of the target tokens. Alignment: at each output position of a group, the L2 distance of the
    projected hidden states to the frozen text encoder's embedding of the caption, averaged over positions and groups.
    A batch's media are either raw and encoded here ("input"), or encoder embeddings already ("embeddings"); captions
    are either ids for the text encoder ("captions") or its embeddings already ("targets").
    """
    media, positions = [], []
    dtype = model.llm.embed_tokens.embedding[...].dtype  # what frozen parts compute in
    for name, entry in batch["media"].items():
        embedded = entry.get("embeddings")
        if embedded is None:
            raw = entry["input"]
            flat = model.encode(name, raw.reshape(-1, *raw.shape[2:]).astype(dtype))
            embedded = jax.lax.stop_gradient(flat).reshape(*raw.shape[:2], -1)
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
        alignment = alignment + MODALITIES[name].loss_weight * mean
    total = language + alignment_weight * alignment
    return total, {"loss": total, "loss_language": language, "loss_alignment": alignment, "token_accuracy": correct}


def alignment_distance(model, modality: str, hidden: Array, tokens: Array, signals: dict[str, Array]) -> Array:
    """[B, G]: mean over output positions of the L2 distance to the caption's embedding, 0 gradient where unused."""
    b, g, n = signals["positions"].shape
    rows = jnp.arange(b)[:, None, None]
    at = jnp.where(signals["mask"][..., None], signals["positions"], 0)
    states = hidden[rows, at].reshape(b * g, n, -1)
    predicted = model.prompt_embeddings(modality, states, tokens[rows, at].reshape(b * g, n))
    wanted = signals.get("targets")
    if wanted is None:
        captions = signals["captions"].reshape(b * g, -1)
        wanted = jax.lax.stop_gradient(model.decoders[modality].text_encoder(captions))
    difference = predicted.astype(jnp.float32) - wanted.reshape(predicted.shape).astype(jnp.float32)
    return optax.safe_norm(difference, 1e-6, axis=-1).mean(-1).reshape(b, g)
