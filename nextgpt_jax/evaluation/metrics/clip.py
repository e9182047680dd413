"""Similarities by CLIP: CLIP score, CLIPSIM, CLIP-T and CLIP-I."""

import abc
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nextgpt_jax.evaluation.features.clip import ClipFeatures
from nextgpt_jax.evaluation.metrics.outputs import mean, missing, of_made, reference
from nextgpt_jax.evaluation.types import Outcome

FRAMES = 16


class _Similarity(abc.ABC):
    """The mean of a cosine similarity of each answer, which is its only number."""

    higher_is_better = True
    name = figure = ""
    modality = "image"

    def __init__(self, folder: str | os.PathLike):
        self._clip = ClipFeatures(folder)

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n 1"]:
        """The similarity of each answer; NaN of one without a medium."""
        return of_made(outcomes, self.modality, 1, lambda some, files: self._similarities(some, files)[:, None])

    def aggregate(self, numbers: Float[np.ndarray, "n 1"]) -> dict[str, float]:
        """The mean."""
        return {self.figure: mean(numbers[:, 0])} | missing(numbers)

    def scores(self, numbers: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, " n"]:
        """The similarities."""
        return np.asarray(numbers[:, 0])

    @abc.abstractmethod
    def _similarities(self, outcomes: list[Outcome], files: list[os.PathLike]) -> Float[np.ndarray, " n"]:
        """Of outcomes with a medium."""

    def _captions(self, outcomes: list[Outcome]) -> Float[np.ndarray, "n d"]:
        return self._clip.texts([reference(outcome.sample, "caption") for outcome in outcomes])


class CLIPScore(_Similarity):
    """100 times the cosine of an image and its caption (Hessel et al. 2021), at least 0, as torchmetrics computes it.

    Args:
      folder: CLIP in the hub's layout (`config.eval.clip`).
    """

    name, figure = "clip_score", "CLIP"

    def __init__(self, folder: str | os.PathLike):
        super().__init__(folder)
        self.protocol = f"100 x cosine of image and caption, {self._clip.name}"

    def aggregate(self, numbers: Float[np.ndarray, "n 1"]) -> dict[str, float]:
        """The mean, at least 0."""
        return {self.figure: max(100 * mean(numbers[:, 0]), 0.0)} | missing(numbers)

    def _similarities(self, outcomes: list[Outcome], files: list[os.PathLike]) -> Float[np.ndarray, " n"]:
        return (self._clip.images(files) * self._captions(outcomes)).sum(-1)


class CLIPSIM(_Similarity):
    """The cosine of a video's frames and its caption, mean over the frames (Wu et al. 2021, GODIVA).

    Args:
      folder: CLIP in the hub's layout.
      frames: of each video, evenly spaced.
      figure: "CLIPSIM", or "CLIP-T" of edited videos, which is the same.
    """

    modality = "video"

    def __init__(self, folder: str | os.PathLike, *, frames: int = FRAMES, figure: str = "CLIPSIM"):
        super().__init__(folder)
        self.name, self.figure, self._frames = figure.lower().replace("-", "_"), figure, frames
        self.protocol = f"cosine of {frames} frames and the caption, {self._clip.name}"

    def _similarities(self, outcomes: list[Outcome], files: list[os.PathLike]) -> Float[np.ndarray, " n"]:
        return (self._clip.videos(files, self._frames).mean(1) * self._captions(outcomes)).sum(-1)


class FrameConsistency(_Similarity):
    """CLIP-I of edited videos: the cosine of consecutive frames, mean over the pairs (Ceylan et al. 2023, Pix2Video).

    Args:
      folder, frames: see CLIPSIM; at least 2 frames.
    """

    name, figure, modality = "clip_i", "CLIP-I", "video"

    def __init__(self, folder: str | os.PathLike, *, frames: int = FRAMES):
        super().__init__(folder)
        self._frames = frames
        self.protocol = f"cosine of consecutive frames, of {frames} of each video, {self._clip.name}"

    def _similarities(self, outcomes: list[Outcome], files: list[os.PathLike]) -> Float[np.ndarray, " n"]:
        found = self._clip.videos(files, self._frames)
        return (found[:, 1:] * found[:, :-1]).sum(-1).mean(-1)
