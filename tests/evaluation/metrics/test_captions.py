"""BLEU, ROUGE-L and CIDEr against pycocoevalcap."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from nextgpt_jax.evaluation.metrics.captions import Bleu, Cider, PlainCider, RougeL
from nextgpt_jax.evaluation.metrics.ptb import tokenize
from nextgpt_jax.evaluation.types import Outcome, Sample

WORDS = "a the man dog red ball on in runs sits near don't two 1 1/2 table, with and ( ) . of".split()


def caption(draw):
    return " ".join(draw.choices(WORDS, k=draw.randrange(1, 14)))


@pytest.fixture(scope="module")
def outcomes():
    """Answers like their references and unlike them, and without words."""
    draw = random.Random(0)
    found = []
    for number in range(40):
        known = tuple(caption(draw) for _ in range(draw.randrange(1, 6)))
        answer = draw.choice([known[0], known[-1] + " and a man", caption(draw), "", "."])
        found.append(Outcome(Sample(str(number), "", references={"captions": known}), answer))
    return found


@pytest.fixture(scope="module")
def tokenized(outcomes):
    """What pycocoevalcap's scorers take."""
    known = {
        outcome.sample.id: [tokenize(text) for text in outcome.sample.references["captions"]] for outcome in outcomes
    }
    return known, {outcome.sample.id: [tokenize(outcome.text)] for outcome in outcomes}


def samples(outcomes):
    return [outcome.sample for outcome in outcomes]


def test_bleu_equals_pycocoevalcap(outcomes, tokenized):
    original = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    figures, each = original.compute_score(*tokenized, verbose=0)
    metric = Bleu(samples(outcomes), scale=1)
    numbers = metric.measure(outcomes)
    found = metric.aggregate(numbers)
    assert list(found) == ["BLEU-4", "BLEU-1", "BLEU-2", "BLEU-3"]
    np.testing.assert_allclose([found[f"BLEU-{size}"] for size in range(1, 5)], figures, rtol=1e-6)
    np.testing.assert_allclose(metric.scores(numbers), each[3], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "module", "name"), [(RougeL, "rouge.rouge", "Rouge"), (Cider, "cider.cider", "Cider")]
)
def test_means_equal_pycocoevalcap(outcomes, tokenized, kind, module, name):
    original = getattr(pytest.importorskip(f"pycocoevalcap.{module}"), name)()
    figure, each = original.compute_score(*tokenized)
    metric = kind(samples(outcomes))
    numbers = np.concatenate([metric.measure(outcomes[:7]), metric.measure(outcomes[7:])])
    assert metric.aggregate(numbers)[metric.figure] == pytest.approx(100 * figure, rel=1e-6)
    np.testing.assert_allclose(metric.scores(numbers), 100 * np.array(each), rtol=1e-6, atol=1e-9)


def test_plain_cider_is_the_cosine_of_weighted_counts(outcomes):
    """The definition of Vedantam et al., written with dense vectors."""

    def counts(text, size):
        words = tokenize(text).split()
        return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))

    expected = np.zeros(len(outcomes))
    for size in range(1, 5):
        known = [[counts(text, size) for text in sample.references["captions"]] for sample in samples(outcomes)]
        given = [counts(outcome.text, size) for outcome in outcomes]
        grams = sorted({gram for item in [*given, *(text for texts in known for text in texts)] for gram in item})
        frequency = [max(1, sum(any(gram in text for text in texts) for texts in known)) for gram in grams]
        weights = np.array([math.log(len(outcomes) / number) for number in frequency])
        for row, (answer, texts) in enumerate(zip(given, known)):
            one = weights * [answer[gram] for gram in grams]
            for text in texts:
                other = weights * [text[gram] for gram in grams]
                norm = np.linalg.norm(one) * np.linalg.norm(other)
                expected[row] += 10 * (one @ other / norm if norm else 0) / len(texts) / 4
    metric = PlainCider(samples(outcomes), scale=1)
    np.testing.assert_allclose(metric.scores(metric.measure(outcomes)), expected, rtol=1e-9, atol=1e-12)


def test_figures_of_drawn_rows_are_those_of_drawn_outcomes(outcomes):
    """A bootstrap aggregates rows again."""
    drawn = [0, 3, 3, 17, 21]
    metric = Bleu(samples(outcomes))
    again = metric.aggregate(metric.measure([outcomes[row] for row in drawn]))
    assert metric.aggregate(metric.measure(outcomes)[drawn]) == pytest.approx(again)
