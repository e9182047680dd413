"""Text encoders, trained on captions alone: a contrastive loss between the spellings of one thing and all others."""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from examples.keypad.pretrain.common import fit

_TEMPERATURE = 0.1


def _caption_pairs(captions: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Two spellings of everything: [2, things, T]."""
    each = np.arange(len(captions))
    while True:
        yield captions[each, rng.integers(captions.shape[1], size=(2, len(captions)))]


def fit_text_encoder(
    name: str,
    model: nnx.Module,
    embed: Callable[[nnx.Module, Int[Array, "n t"]], Float[Array, "n d"]],
    captions: Int[np.ndarray, "things spellings t"],
    unconditional: Int[np.ndarray, " t"],
    *,
    steps: int,
    lr: float = 1e-3,
) -> nnx.Module:
    """Trains `model` so that `embed` distinguishes the things, and the empty caption, for every spelling."""
    empty = np.broadcast_to(unconditional, (1, captions.shape[1], len(unconditional)))
    captions = np.concatenate([captions, empty])
    labels = np.arange(len(captions))

    def unit(model, ids):
        x = embed(model, ids)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def loss(model: nnx.Module, batch: Array, _: Array) -> tuple[Array, dict[str, Array]]:
        one, other = unit(model, batch[0]), unit(model, batch[1])
        logits = one @ other.T / _TEMPERATURE
        losses = [optax.softmax_cross_entropy_with_integer_labels(x, labels).mean() for x in (logits, logits.T)]
        return sum(losses) / 2, {}

    model = fit(name, model, loss, _caption_pairs(captions, np.random.default_rng(3)), steps=steps, lr=lr)
    usual = unit(model, captions[:, 0])
    every = unit(model, captions.reshape(-1, captions.shape[-1])).reshape(*captions.shape[:2], -1)
    right = np.asarray(jnp.einsum("nsd,md->nsm", every, usual).argmax(-1)) == labels[:, None]
    print(f"{name}: {right.sum()} of {right.size} spellings nearest to the usual caption of their thing", flush=True)
    return model
