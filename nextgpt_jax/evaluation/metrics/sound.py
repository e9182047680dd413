"""FD, IS and KL of sounds, as audioldm_eval computes them."""

import os
from collections.abc import Sequence

import numpy as np
import scipy.special
from jaxtyping import Float

from nextgpt_jax.evaluation.features.sound import SoundFeatures
from nextgpt_jax.evaluation.metrics.frechet import Frechet
from nextgpt_jax.evaluation.metrics.inception_score import SEED, SPLITS, inception_score
from nextgpt_jax.evaluation.metrics.outputs import mean, of_made, reference
from nextgpt_jax.evaluation.types import Outcome, Sample

_EPS = 1e-6


class SoundQuality(Frechet):
    """FD: the Fréchet distance between Cnn14's embeddings of what was made and of the references. IS: of the logits,
    over 10 splits. KL: the divergence of the reference's classes from those of its sample's answer, mean over answers;
    "KL sigmoid" takes each class for itself. (Audio KL and FD are lower for better answers, IS is higher.)

    Args:
      cnn14: PANNs' weights (`config.eval.cnn14`); the rate in Hz is that of the file.
      samples: with a reference "audio" each.
      references: see Frechet. KL compares with the samples' own references in any case.

    Raises:
      UserError: weights or references are missing or do not fit.
    """

    def __init__(self, cnn14: str | os.PathLike, samples: Sequence[Sample], *, references: str | os.PathLike = ""):
        self._network = network = SoundFeatures(cnn14)
        super().__init__(
            lambda paths: network(paths).embeddings,
            samples,
            width=network.width,
            modality="audio",
            references=references,
            name="sound",
            figure="FD",
            protocol=f"PANNs' Cnn14 at {network.sample_rate:,} Hz, {network.width:,} numbers and {network.classes} "
            f"classes, as audioldm_eval; IS over {SPLITS} splits in the order of seed {SEED}",
        )

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n s"]:
        """The embedding, the logits, and both divergences of each answer."""

        def numbers(some: list[Outcome], files: list[os.PathLike]) -> Float[np.ndarray, "n s"]:
            made = self._network(files)
            wanted = self._network([reference(outcome.sample, "audio") for outcome in some])
            divergences = np.stack(divergence(made.logits, wanted.logits), axis=1)
            return np.concatenate([made.embeddings, made.logits, divergences], axis=1)

        return of_made(outcomes, "audio", self._network.width + self._network.classes + 2, numbers)

    def aggregate(self, numbers: Float[np.ndarray, "n s"]) -> dict[str, float]:
        """FD, IS, both KL and the deviation of IS over the splits."""
        width = self._network.width
        figures = super().aggregate(numbers[:, :width])
        known = np.flatnonzero(~np.isnan(numbers[:, 0]))
        score, deviation = inception_score(lambda rows: np.asarray(numbers[known[rows], width:-2]), len(known))
        softmax, sigmoid = (mean(numbers[:, column]) for column in (-2, -1))
        distance = {"FD": figures.pop("FD")}
        return distance | {"IS": score, "KL": softmax, "KL sigmoid": sigmoid, "IS deviation": deviation} | figures

    def scores(self, numbers: Float[np.ndarray, "n s"]) -> Float[np.ndarray, " n"]:
        """KL of each answer."""
        return np.asarray(numbers[:, -2])


def divergence(
    made: Float[np.ndarray, "n classes"], wanted: Float[np.ndarray, "n classes"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The divergences of classes from logits: as one distribution over classes (softmax), and as one for each."""
    found = []
    for function in (lambda x: scipy.special.softmax(x, axis=1), scipy.special.expit):
        p, q = (function(x.astype(np.float64)) for x in (wanted, made))
        found.append((scipy.special.xlogy(p, p) - p * np.log(q + _EPS)).sum(1))
    return found[0], found[1]
