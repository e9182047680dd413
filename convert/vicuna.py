"""Models that were published as differences from LLaMA, such as Vicuna v0."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np

from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor

_ROWS = ("model.embed_tokens.weight", "lm_head.weight")  # a delta may add tokens, which are more rows


def with_delta(base: Checkpoint, delta: Checkpoint, growth: Literal["zero", "mean"] = "zero") -> Checkpoint:
    """The tensors of `base` plus those of `delta`, computed in the delta's dtype when they are read.

    Args:
      base: the original model.
      delta: the differences, with possibly more rows of embedding and head.
      growth: the values of the base's missing rows before the addition: zeros, as in FastChat for Vicuna v0, or the
        mean of its rows.

    Raises:
      ConversionError: a tensor is missing in one of them, or the shapes differ.
    """
    buffers = {k: t for k, t in (delta.tensors | base.tensors).items() if k.endswith("rotary_emb.inv_freq")}
    problems, tensors = [], dict(buffers)
    for key in sorted((base.tensors.keys() | delta.tensors.keys()) - buffers.keys()):
        old, change = base.tensors.get(key), delta.tensors.get(key)
        if old is None or change is None:
            problems.append(f"{key} is only in the {'delta' if old is None else 'base'}")
        elif not _grows(key, old.shape, change.shape):
            problems.append(f"{key} has shape {list(old.shape)} in the base and {list(change.shape)} in the delta")
        else:
            tensors[key] = Tensor(change.shape, change.dtype, _reader(old, change, growth))
    if problems:
        raise ConversionError.of(f"{base.source} with the delta {delta.source}", problems)
    return Checkpoint(f"{base.source} with the delta {delta.source}", tensors, (*base.files, *delta.files))


def _grows(key: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return old == new or (key in _ROWS and old[1:] == new[1:] and old[0] < new[0])


def _reader(old: Tensor, change: Tensor, growth: str):
    def read() -> np.ndarray:
        rows, added = old.read().astype(change.dtype), change.shape[0] - old.shape[0]
        if added:
            more = np.zeros((added, *rows.shape[1:]), rows.dtype)
            if growth == "mean":
                more += jnp.asarray(rows).astype(jnp.float32).mean(0).astype(rows.dtype)
            rows = np.concatenate([rows, more])
        return rows + change.read()

    return read


def truncate_vocab(checkpoint: Checkpoint, count: int) -> Checkpoint:
    """The checkpoint with the first `count` rows of embedding and head, without tokens that were added after them.

    Raises:
      ConversionError: it has fewer rows.
    """
    tensors = dict(checkpoint.tensors)
    for key in tensors.keys() & set(_ROWS):
        whole = tensors[key]
        if count > whole.shape[0]:
            raise ConversionError(f"{checkpoint.source}: {key} has {whole.shape[0]} rows, not {count}")
        tensors[key] = Tensor((count, *whole.shape[1:]), whole.dtype, _first_rows(whole, count))
    return checkpoint.with_tensors(tensors)


def _first_rows(whole: Tensor, count: int) -> Callable[[], np.ndarray]:
    return lambda: whole.read()[:count]
