"""Embeddings of images, frames and texts by CLIP."""

import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from nextgpt_jax import compiler
from nextgpt_jax.evaluation.features import batches, frames
from nextgpt_jax.media.image import preprocess_image, read_picture
from nextgpt_jax.models.features.clip import CLIP
from nextgpt_jax.templates import Tokenizer
from nextgpt_jax.weights.feature_networks import load_clip


class ClipFeatures:
    """CLIP with its preprocessing: shorter side bicubic to the model's size, center crop.

    Raises:
      UserError: the folder is missing or does not fit.
    """

    def __init__(self, folder: str | os.PathLike, *, batch: int = 32):
        self._model, self._tokenizer = _loaded(os.fspath(folder))
        self._batch = batch

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return self._model.config.projection_dim

    @property
    def name(self) -> str:
        """Of the network in protocols, by its patches and the layers of its vision tower."""
        vision = self._model.config.vision
        size = {12: "B", 24: "L", 32: "H"}.get(vision.num_hidden_layers, f"{vision.num_hidden_layers} layers")
        return f"CLIP ViT-{size}/{vision.patch_size}"

    def images(self, paths: Sequence[str | os.PathLike]) -> Float[np.ndarray, "n {self.width}"]:
        """Unit vectors of image files. Raises UserError if one cannot be read."""
        return self._images(paths, lambda path: preprocess_image(read_picture(path), self._size)[None])

    def videos(self, paths: Sequence[str | os.PathLike], count: int) -> Float[np.ndarray, "n {count} {self.width}"]:
        """Unit vectors of `count` frames of each video file. Raises UserError if one cannot be read."""

        def read(path):
            return np.stack([preprocess_image(frame, self._size) for frame in frames.evenly(path, count)])

        return self._images(paths, read, count).reshape(len(paths), count, -1)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n {self.width}"]:
        """Unit vectors of texts; what is longer than the model's context is cut off."""
        length = self._model.config.text.max_position_embeddings
        ids = self._tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)["input_ids"]
        rows, network = np.asarray(ids, np.int32)[:, None], functools.partial(_texts, self._model)
        return batches.compute(rows, lambda row: row, network, batch=self._batch)

    @property
    def _size(self) -> int:
        return self._model.config.vision.image_size

    def _images(self, paths, read, rows: int = 1) -> np.ndarray:
        return batches.compute(paths, read, functools.partial(_images, self._model), batch=self._batch, rows=rows)


@functools.lru_cache(maxsize=1)
def _loaded(folder: str) -> tuple[CLIP, Tokenizer]:
    """One for all metrics of a run."""
    return load_clip(folder)


@compiler.jit
def _images(model: CLIP, images: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # of float32, which accelerators round otherwise
        return model.embed_images(images)


@compiler.jit
def _texts(model: CLIP, ids: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return model.embed_texts(ids)
