"""Accuracies against the official evaluations' values, which were recorded from them, and their rules."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.evaluation.metrics.answers import (
    ExactMatch,
    GQAAccuracy,
    MultipleChoice,
    ScienceQAAccuracy,
    VQAAccuracy,
)
from nextgpt_jax.evaluation.metrics.normalization import normalized
from nextgpt_jax.evaluation.types import Outcome, Sample


def outcome(text, category="", **references):
    return Outcome(Sample("1", "?", references=references, category=category), text)


def score(metric, *args, **references):
    return metric.scores(metric.measure([outcome(*args, **references)]))[0] / 100


@pytest.mark.parametrize(
    ("answer", "expected"),  # by GT-Vision-Lab/VQA's vqaEval.py, processPunctuation and processDigitArticle
    [
        ("A Red-Car", "red car"), ("the  Cat, dog", "cat dog"), ("cat,dog", "cat dog"), ("1,000 men", "1000 men"),
        ("1,000/2", "10002"), ("and/or 1,5", "andor 15"), ("3.5", "3.5"), ("3.", "3"), ("u.s.a.", "usa"),
        ("St. John's", "st john's"), ("dont know", "don't know"), ("Id've", "id've"), ("shed've", "she'd've"),
        ("somebody'd", "somebodyd"), ("none", "0"), ("Ten", "10"), ("eleven", "eleven"), ("a-b -c", "ab c"),
        ("what?!", "what"), ("why ?", "why"), ("x_y", "x y"), ("(left)", "left"), ("its", "its"), ("ows'at", "ows'at"),
        ("'ows'at", "'ow's'at"), ("yalldve", "yalldve"), ("an a the", ""), ("\tyes\n", "yes"), ("5'4\"", "5'4"),
        ("." * 40 + "a", "." * 8 + "a"), ("٣,٣", "٣ ٣"),
    ],
)  # fmt: skip
def test_normal_form_is_the_official_one(answer, expected):
    assert normalized(answer) == expected


@given(st.text("aAn the,.-?'1 0dontk/", max_size=20))
def test_normal_form_has_no_articles_capitals_or_marks(answer):
    words = normalized(answer).split(" ")
    assert not {"a", "an", "the"} & set(words) and not re.search(r"[A-Z,?/-]", " ".join(words))


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_leaves_out_each_annotator(agreeing, expected):
    answers = ["two"] * agreeing + ["Three", "4", "five"][: min(3, 10 - agreeing)] + ["many"] * max(0, 7 - agreeing)
    assert score(VQAAccuracy(), "2" if agreeing < 10 else "two", answers=answers) == pytest.approx(expected)


def test_vqa_takes_answers_as_they_are_if_all_agree():
    """As the official evaluation does."""
    assert score(VQAAccuracy(), "the dog", answers=["dog"] * 10) == 0
    assert score(VQAAccuracy(), "the dog", answers=["dog"] * 9 + ["cat"]) == 1


@given(st.lists(st.sampled_from(["yes", "no", "maybe", "the yes"]), min_size=2, max_size=10), st.randoms())
def test_vqa_needs_no_order(answers, random):
    mixed = random.sample(answers, len(answers))
    assert score(VQAAccuracy(), "yes", answers=answers) == pytest.approx(score(VQAAccuracy(), "yes", answers=mixed))


def test_exact_match_and_gqa():
    assert score(ExactMatch(), "The two dogs.", answer="2 dogs") == 1
    assert score(ExactMatch(), "two dogs and a cat", answers=("2 dogs", "cat")) == 0
    assert score(GQAAccuracy(), " Left. ", answer="left") == 1
    assert score(GQAAccuracy(), "the left", answer="left") == 0


@pytest.mark.parametrize(
    ("text", "right"),
    [("(B) a ball", 1), ("B", 1), ("b.", 1), ("(b", 1), ("B) ball", 1), ("((B) ball", 1), ("(B),", 1), ("B\nA", 1),
     ("A", 0), ("Ball", 0), ("a ball", 0), ("B: ball", 0), ("The answer is (B)", 0), ("", 0), ("()", 0), (".", 0)],
)  # fmt: skip
def test_multiple_choice_finds_the_letter_like_mvbench(text, right):
    assert score(MultipleChoice(), text, choices=("a cat", "a ball"), answer="a ball") == right


@pytest.mark.parametrize(
    ("text", "right"),
    [("B", 1), ("B. a ball", 1), ("It rolls. The answer is B.", 1), ("B: ball", 0), ("b", 0), ("a ball", 0), ("", 0),
     ("The answer is B. The answer is B.", 0), ("A", 0), ("F", 0)],
)  # fmt: skip
def test_scienceqa_finds_the_letter_like_llava(text, right):
    assert score(ScienceQAAccuracy(), text, choices=("a cat", "a ball"), answer="a ball") == right


def test_categories_have_means_of_their_own():
    texts, categories = ["B", "A", "B", "A"], ["order", "order", "pose", ""]
    outcomes = [outcome(text, category, choices=("x", "y"), answer="y") for text, category in zip(texts, categories)]
    metric = MultipleChoice([item.sample for item in outcomes])
    numbers = metric.measure(outcomes)
    assert metric.aggregate(numbers) == {"accuracy": 50, "accuracy/order": 50, "accuracy/pose": 100}
    assert metric.aggregate(numbers[[0, 0]]) == {"accuracy": 100, "accuracy/order": 100}
    assert list(metric.scores(numbers)) == [100, 0, 100, 0]
