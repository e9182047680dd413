"""Metrics that are the mean of a score of each answer."""

import abc
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nextgpt_jax.evaluation.types import Outcome, Sample

_BLOCK = 1 << 20  # rows that are read at once


class MeanScore(abc.ABC):
    """The mean of scores, and that of each category of the samples.

    The numbers of an outcome are its score and the index of its category.

    Attributes:
      figure: the name of the mean in results; a category's is "figure/category".
      scale: scores are multiplied with it in figures; 100: percent.
    """

    name: str
    protocol: str
    figure: str
    scale = 1.0
    higher_is_better = True

    def __init__(self, samples: Sequence[Sample] = ()):
        """
        Args:
          samples: of the run, whose categories are reported; none: only the mean of all is.
        """
        self._categories = tuple(sorted({sample.category for sample in samples} - {""}))
        self._index = {category: index for index, category in enumerate(self._categories)}

    @abc.abstractmethod
    def score(self, outcome: Outcome) -> float:
        """The score of an outcome, before it is scaled."""

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n 2"]:
        """Scores, and indices of categories (-1: none)."""
        rows = [(self.score(outcome), self._index.get(outcome.sample.category, -1)) for outcome in outcomes]
        return np.array(rows, np.float64).reshape(-1, 2)

    def aggregate(self, numbers: Float[np.ndarray, "n 2"]) -> dict[str, float]:
        """The mean, and the means of those categories that occur."""
        count = len(self._categories) + 1  # the last one: outcomes of no category
        sums, counts = np.zeros(count), np.zeros(count)
        for begin in range(0, len(numbers), _BLOCK):
            scores, places = np.asarray(numbers[begin : begin + _BLOCK], np.float64).T
            places = places.astype(int) % count
            sums += np.bincount(places, scores, count)
            counts += np.bincount(places, minlength=count)
        with np.errstate(invalid="ignore"):
            means = self.scale * sums / counts
        found = {f"{self.figure}/{name}": float(mean) for name, mean in zip(self._categories, means) if mean == mean}
        total = counts.sum()
        return {self.figure: self.scale * float(sums.sum() / total) if total else math.nan, **found}

    def scores(self, numbers: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """The scores, as they are in figures."""
        return self.scale * np.asarray(numbers[:, 0], np.float64)
