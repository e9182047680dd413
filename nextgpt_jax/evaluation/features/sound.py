"""Embeddings and logits of sounds by PANNs' Cnn14."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nextgpt_jax import compiler
from nextgpt_jax.evaluation.features.batches import read_ahead
from nextgpt_jax.media.audio import read_audio
from nextgpt_jax.models.features.cnn14 import Cnn14, pad
from nextgpt_jax.weights.feature_networks import load_cnn14

_SHORTEST = 32_000  # samples, to which audioldm_eval extends sounds with silence
_MAX_SECONDS = 60.0  # of a sound: eight of them take a gigabyte
_STEP = 5  # seconds: sounds are computed at multiples of it, so that few programs are compiled


class Sounds(NamedTuple):
    embeddings: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n classes"]


class SoundFeatures:
    """Cnn14 with audioldm_eval's preprocessing: at the network's rate, mean 0, at least 32,000 samples.

    Its loader takes the first channel, and this one the mean of all.

    Raises:
      UserError: the weights are missing or belong to another network.
    """

    def __init__(self, path: str | os.PathLike, *, batch: int = 8):
        self._model = load_cnn14(os.fspath(path))
        self._batch = batch

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return self._model.config.widths[-1]

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self._model.config.classes

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self._model.config.sample_rate

    def __call__(self, paths: Sequence[str | os.PathLike]) -> Sounds:
        """Of sound files. Raises UserError if one cannot be read."""
        embeddings = np.zeros((len(paths), self.width), np.float32)
        logits = np.zeros((len(paths), self.classes), np.float32)
        waiting: dict[int, list[tuple[int, np.ndarray]]] = {}  # by length in samples: index and sound

        def compute(length: int) -> None:
            some = waiting.pop(length)
            rows = [index for index, _ in some]
            embeddings[rows], logits[rows] = self._compute([sound for _, sound in some], length)

        for index, sound in enumerate(read_ahead(paths, self._read, 2 * self._batch)):
            length = -(-len(sound) // (_STEP * self.sample_rate)) * _STEP * self.sample_rate
            waiting.setdefault(length, []).append((index, sound))
            if len(waiting[length]) == self._batch:
                compute(length)
        for length in list(waiting):
            compute(length)
        return Sounds(embeddings, logits)

    def _read(self, path: str | os.PathLike) -> Float[np.ndarray, " n"]:
        sound = read_audio(path, sample_rate=self.sample_rate, max_seconds=_MAX_SECONDS)
        sound = sound - sound.mean()
        return np.pad(sound, (0, max(0, _SHORTEST - len(sound))))

    def _compute(self, sounds: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
        config = self._model.config
        empty = [np.zeros(_SHORTEST, np.float32)] * (self._batch - len(sounds))
        padded = np.stack([pad(sound, config, length) for sound in sounds + empty])
        frames = np.array([config.frames(len(sound)) for sound in sounds + empty], np.int32)
        found = _features(self._model, jnp.asarray(padded), jnp.asarray(frames))
        return tuple(np.asarray(part)[: len(sounds)] for part in found)


@compiler.jit
def _features(model: Cnn14, padded: jax.Array, frames: Int[jax.Array, " b"]) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision("highest"):  # of float32, which accelerators round otherwise
        return model(padded, frames)
