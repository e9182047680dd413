"""Features of images and of frames of videos by FID's Inception."""

import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from nextgpt_jax import compiler
from nextgpt_jax.evaluation.features import batches, frames
from nextgpt_jax.media.image import read_image
from nextgpt_jax.models.features.inception import SIZE, Inception
from nextgpt_jax.weights.feature_networks import load_inception


def resize_as_pytorch_fid(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "299 299 3"]:
    """An image at the network's size with values in [-1, 1]: bilinear, not antialiased, sides independently."""
    height, width = image.shape[:2]
    rows = _between(image, *_neighbors(height), axis=0)  # [299, W, 3]
    return _between(rows, *_neighbors(width), axis=1) * np.float32(2 / 255) - np.float32(1)


def resize_as_clean_fid(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "299 299 3"]:
    """An image at the network's size with values in [-1, 1): Pillow's bicubic filter, antialiased, in floating point,
    sides independently."""
    planes = []
    for plane in np.moveaxis(image, -1, 0):
        picture = Image.fromarray(plane.astype(np.float32))
        planes.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).clip(0, 255))
    return (np.stack(planes, -1) - np.float32(128)) / np.float32(128)


RESIZES = {"pytorch-fid": resize_as_pytorch_fid, "clean-fid": resize_as_clean_fid}


def _neighbors(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels before and after each of SIZE places in `size` pixels, and the weight of the latter."""
    at = np.maximum((np.arange(SIZE) + 0.5) * size / SIZE - 0.5, 0)
    before = np.floor(at).astype(np.int64)
    return before, np.minimum(before + 1, size - 1), (at - before).astype(np.float32)


def _between(x: np.ndarray, before: np.ndarray, after: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * x.ndim
    shape[axis] = SIZE
    first = np.take(x, before, axis).astype(np.float32)
    return first + (np.take(x, after, axis) - first) * weight.reshape(shape)


class InceptionFeatures:
    """FID's Inception with its preprocessing.

    Raises:
      UserError: the weights are missing or belong to another network.
      ValueError: there is no such way to resize.
    """

    def __init__(self, path: str | os.PathLike, *, resize: str = "pytorch-fid", batch: int | None = None):
        if resize not in RESIZES:
            raise ValueError(f"resize: {resize!r} is not one of {', '.join(RESIZES)}")
        self._model = _loaded(os.fspath(path))
        self._resize, self._batch = RESIZES[resize], batch or (8 if jax.default_backend() == "cpu" else 32)

    @property
    def width(self) -> int:
        """Of the features."""
        return self._model.config.width

    def images(self, paths: Sequence[str | os.PathLike]) -> Float[np.ndarray, "n {self.width}"]:
        """Features of image files. Raises UserError if one cannot be read."""
        return self._compute(paths, lambda path: self._resize(read_image(path))[None])

    def videos(self, paths: Sequence[str | os.PathLike], count: int) -> Float[np.ndarray, "n {count} {self.width}"]:
        """Features of `count` frames of each video file. Raises UserError if one cannot be read."""
        found = self._compute(paths, lambda path: np.stack([*map(self._resize, frames.evenly(path, count))]), count)
        return found.reshape(len(paths), count, -1)

    def _compute(self, paths, read, rows: int = 1) -> np.ndarray:
        return batches.compute(paths, read, functools.partial(_features, self._model), batch=self._batch, rows=rows)

    def logits(self, features: Float[np.ndarray, "n {self.width}"]) -> Float[np.ndarray, "n classes"]:
        """The logits that IS is defined with."""
        return features @ np.asarray(self._model.fc.kernel[...])


@functools.lru_cache(maxsize=1)
def _loaded(path: str) -> Inception:
    """One for all metrics of a run."""
    return load_inception(path)


@compiler.jit
def _features(model: Inception, images: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # of float32, which accelerators round otherwise
        return model(images)
