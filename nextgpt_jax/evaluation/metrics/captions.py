"""Caption metrics by n-grams and subsequences: BLEU, ROUGE-L and CIDEr, equal to pycocoevalcap's.

References: "captions", texts. Answers and references are tokenized by `ptb.tokenize`.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from nextgpt_jax.evaluation.metrics.means import MeanScore
from nextgpt_jax.evaluation.metrics.ptb import tokenize
from nextgpt_jax.evaluation.types import Outcome, Sample

_LONGEST = 4  # words of an n-gram
_TINY, _SMALL = 1e-15, 1e-9  # what pycocoevalcap adds to numerators and denominators
_BLOCK = 1 << 20  # rows that are read at once
_BETA = 1.2  # of ROUGE-L: weight of the recall
_SIGMA = 6.0  # of CIDEr-D: words by which lengths may differ
_CIDER_SCALE = 10.0
_TOKENS = "PTB tokens without punctuation, in lower case"

Ngram = tuple[str, ...]


def references(sample: Sample) -> list[str]:
    """The tokenized references of a sample."""
    return [tokenize(caption) for caption in sample.references["captions"]]


@functools.lru_cache(maxsize=1 << 12)  # metrics measure the same few samples one after another
def ngrams(text: str) -> Counter[Ngram]:
    """How often each n-gram of up to four words is in a tokenized text."""
    words = text.split()
    return Counter([gram for size in range(_LONGEST) for gram in zip(*(words[begin:] for begin in range(size + 1)))])


class Bleu:
    """BLEU of 1 to 4 words of the whole corpus, with the reference of the closest length.

    The numbers of an outcome: its words, those of its closest reference, and for each size its n-grams and the number
    of them that are in a reference.
    """

    name = "bleu"
    protocol = f"corpus BLEU, closest reference length; {_TOKENS}"
    higher_is_better = True

    def __init__(self, samples: Sequence[Sample] = (), scale: float = 100.0):
        """
        Args:
          scale: figures are multiplied with it; 100: percent.
        """
        self._scale = scale

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n 10"]:
        """Counts."""
        return np.array([self._counts(outcome) for outcome in outcomes], np.float64).reshape(-1, 2 + 2 * _LONGEST)

    @staticmethod
    def _counts(outcome: Outcome) -> list[int]:
        text, known = tokenize(outcome.text), references(outcome.sample)
        length, counts = len(text.split()), [ngrams(reference) for reference in known]
        closest = min((abs(size - length), size) for size in (len(reference.split()) for reference in known))[1]
        right = [0] * _LONGEST
        for gram, count in ngrams(text).items():
            right[len(gram) - 1] += min(count, max(other[gram] for other in counts))
        return [length, closest, *(max(0, length - size) for size in range(_LONGEST)), *right]

    def aggregate(self, numbers: Float[np.ndarray, "n 10"]) -> dict[str, float]:
        """BLEU-4, then BLEU-1 to 3."""
        total = np.zeros((1, 2 + 2 * _LONGEST))
        for begin in range(0, len(numbers), _BLOCK):
            total += np.asarray(numbers[begin : begin + _BLOCK], np.float64).sum(0)
        figures = self._scale * self._bleu(total)[0]
        return {f"BLEU-{size}": float(figures[size - 1]) for size in (_LONGEST, *range(1, _LONGEST))}

    def scores(self, numbers: Float[np.ndarray, "n 10"]) -> Float[np.ndarray, " n"]:
        """BLEU-4 of each outcome."""
        return self._scale * self._bleu(np.asarray(numbers, np.float64))[:, -1]

    @staticmethod
    def _bleu(numbers: Float[np.ndarray, "n 10"]) -> Float[np.ndarray, "n 4"]:
        length, closest = numbers[:, :1], numbers[:, 1:2]
        given, right = numbers[:, 2 : 2 + _LONGEST], numbers[:, 2 + _LONGEST :]
        precisions = np.cumprod((right + _TINY) / (given + _SMALL), 1) ** (1 / np.arange(1, _LONGEST + 1))
        ratio = (length + _TINY) / (closest + _SMALL)
        with np.errstate(over="ignore"):  # no words: 1 / ratio is large
            return precisions * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)


class RougeL(MeanScore):
    """ROUGE-L: F of the longest common subsequence, of the best precision and the best recall of all references."""

    name = "rouge"
    figure = "ROUGE-L"
    scale = 100.0
    protocol = f"mean of F with beta {_BETA}; {_TOKENS}"

    def score(self, outcome: Outcome) -> float:
        """From 0 to 1."""
        words = tokenize(outcome.text).split(" ")  # like pycocoevalcap, which finds one empty word in no words
        places: dict[str, int] = {}
        for place, word in enumerate(words):
            places[word] = places.get(word, 0) | 1 << place
        precision = recall = 0.0
        for reference in references(outcome.sample):
            other = reference.split(" ")
            common = _common(places, len(words), other)
            precision, recall = max(precision, common / len(words)), max(recall, common / len(other))
        if not precision:
            return 0.0
        return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(places: dict[str, int], length: int, other: Iterable[str]) -> int:
    """The length of the longest common subsequence, by Hyyrö's bit-parallel algorithm (2004).

    Args:
      places: of each word of a text of `length` words, as bits.
    """
    full = (1 << length) - 1
    row = full
    for word in other:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & full
    return length - row.bit_count()


class Cider(MeanScore):
    """CIDEr as pycocoevalcap and the COCO server compute it, which is CIDEr-D of Vedantam et al. (2015): counts are
    clipped, and lengths that differ cost. Document frequencies are those of all references of the run."""

    name = "cider"
    figure = "CIDEr"
    protocol = f"CIDEr-D, document frequencies of the run's references; {_TOKENS}"
    clipped = True

    def __init__(self, samples: Sequence[Sample], scale: float = 100.0):
        """
        Args:
          samples: all of the run, also those that are answered elsewhere.
          scale: figures are multiplied with it; 100: as in tables of COCO, 1: of AudioCaps.
        """
        super().__init__(samples)
        self.scale = scale
        found: Counter[Ngram] = Counter()
        for sample in samples:
            found.update({gram for reference in references(sample) for gram in ngrams(reference)})
        self._unknown = math.log(max(1, len(samples)))
        self._weights = {gram: self._unknown - math.log(count) for gram, count in found.items()}

    def score(self, outcome: Outcome) -> float:
        """From 0 to 10."""
        vectors, norms, length = self._weighted(tokenize(outcome.text))
        known = references(outcome.sample)
        total = 0.0
        for reference in known:
            others, other_norms, other_length = self._weighted(reference)
            sums = [0.0] * _LONGEST
            for gram, weight in vectors.items():
                other = others.get(gram)
                if other is not None:
                    sums[len(gram) - 1] += (min(weight, other) if self.clipped else weight) * other
            alike = sum(
                product / (norm * other_norm) if norm and other_norm else product
                for product, norm, other_norm in zip(sums, norms, other_norms)
            )
            total += alike * (math.exp(-((length - other_length) ** 2) / (2 * _SIGMA**2)) if self.clipped else 1.0)
        return _CIDER_SCALE * total / _LONGEST / len(known)

    def _weighted(self, text: str) -> tuple[dict[Ngram, float], list[float], int]:
        """Counts times inverse document frequencies, their norms by size, and the length: like the original's, the
        number of pairs of words."""
        vectors, squares, pairs = {}, [0.0] * _LONGEST, 0
        for gram, count in ngrams(text).items():
            weight = vectors[gram] = count * self._weights.get(gram, self._unknown)
            squares[len(gram) - 1] += weight * weight
            pairs += count if len(gram) == 2 else 0
        return vectors, [math.sqrt(square) for square in squares], pairs


class PlainCider(Cider):
    """CIDEr without the changes of CIDEr-D: neither clipping nor a penalty of lengths."""

    name = "cider_plain"
    figure = "CIDEr (plain)"
    protocol = f"CIDEr without clipping and length penalty, document frequencies of the run's references; {_TOKENS}"
    clipped = False
