"""Frozen encoders over many inputs, in batches of one size on the mesh."""

import collections
import functools
import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nextgpt_jax import compiler
from nextgpt_jax.data.prepared import DTYPES
from nextgpt_jax.errors import UserError
from nextgpt_jax.models.nextgpt import FrozenEncoders
from nextgpt_jax.sharding import batch_sharding, constrain_batch, round_up_to_shards

_IN_FLIGHT = 2  # batches: one is computed while the next one is gathered


class BatchEncoder:
    """Embeddings of inputs that come one by one, by key. Which batch an input is in depends on the inputs before it
    since the last `flush` alone, so that the same inputs give the same bits."""

    def __init__(self, model: FrozenEncoders, mesh: Mesh, compute_dtype: Any, dtype: str, batch_size: int):
        """
        Args:
          model: on the mesh.
          compute_dtype: of inputs.
          dtype: of embeddings, a key of DTYPES.
          batch_size: images in a batch; of larger media, as many as have the size of these images.
        """
        self._model, self._mesh, self._compute_dtype, self._dtype = model, mesh, jnp.dtype(compute_dtype), dtype
        self._batch_size = batch_size
        self._gathered: dict[tuple[str, str], list[tuple[Hashable, np.ndarray]]] = collections.defaultdict(list)
        self._running: collections.deque[tuple[str, list[Hashable], jax.Array]] = collections.deque()
        self._found: dict[Hashable, np.ndarray] = {}

    def size(self, shape: tuple[int, ...], image: tuple[int, ...] | None = None) -> int:
        """Inputs of a shape in a batch."""
        share = math.prod(image) / math.prod(shape) if image else 1.0
        largest = max(1, int(self._batch_size * min(1.0, share)))
        return round_up_to_shards(1 << (largest.bit_length() - 1), self._mesh)

    def add(self, kind: str, modality: str, key: Hashable, value: np.ndarray, size: int) -> None:
        """Adds an input of the encoder ("media") or of the text encoder ("captions") of a modality.

        Args:
          size: of the batches that it is gathered in.
        """
        gathered = self._gathered[kind, modality]
        gathered.append((key, value))
        if len(gathered) == size:
            self._start(kind, modality, size)

    def flush(self, sizes: dict[tuple[str, str], int]) -> dict[Hashable, np.ndarray]:
        """The embeddings of all inputs since the last call, by key.

        Args:
          sizes: of batches, by kind and modality.

        Raises:
          UserError: some are not finite.
        """
        for (kind, modality), gathered in list(self._gathered.items()):
            if gathered:
                self._start(kind, modality, sizes[kind, modality])
        while self._running:
            self._finish()
        found, self._found = self._found, {}
        return found

    def _start(self, kind: str, modality: str, size: int) -> None:
        gathered = self._gathered.pop((kind, modality))
        values = np.stack([value for _, value in gathered])
        padded = np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])
        inputs = jax.device_put(padded, batch_sharding(self._mesh))
        options = dict(modality=modality, dtype=self._dtype)
        if kind == "media":
            made = _encode_media(self._model, inputs, compute_dtype=str(self._compute_dtype), **options)
        else:
            made = _encode_captions(self._model, inputs, **options)
        self._running.append((f"{modality} {kind}", [key for key, _ in gathered], made))
        if len(self._running) >= _IN_FLIGHT:
            self._finish()

    def _finish(self) -> None:
        what, keys, made = self._running.popleft()
        values = np.asarray(made)[: len(keys)]
        if not np.isfinite(values.astype(np.float32)).all():
            raise UserError(
                f"embeddings of {what} are not finite in {self._dtype}: take --dtype=float32, or mend the weights"
            )
        self._found |= zip(keys, values)


@functools.partial(compiler.jit, static_argnames=("modality", "dtype", "compute_dtype"))
def _encode_media(model: FrozenEncoders, x: jax.Array, *, modality: str, dtype: str, compute_dtype: str) -> jax.Array:
    return constrain_batch(model.encode_media(modality, x.astype(compute_dtype))).astype(DTYPES[dtype])


@functools.partial(compiler.jit, static_argnames=("modality", "dtype"))
def _encode_captions(model: FrozenEncoders, ids: jax.Array, *, modality: str, dtype: str) -> jax.Array:
    return constrain_batch(model.decoders[modality].encode_prompt(ids)).astype(DTYPES[dtype])
