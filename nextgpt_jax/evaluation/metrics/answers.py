"""Accuracies of answers to questions, by the rules of the benchmarks' official evaluations."""

import re
import string

from nextgpt_jax.evaluation.metrics.means import MeanScore
from nextgpt_jax.evaluation.metrics.normalization import normalized, one_line
from nextgpt_jax.evaluation.types import Outcome, Sample

_ENOUGH = 3  # annotators who agree with an answer that is entirely right
_SENTENCE = re.compile(r"The answer is ([A-Z]).")
_OPTIONS = "ABCDE"  # of ScienceQA


class _Accuracy(MeanScore):
    figure = "accuracy"
    scale = 100.0


def _references(sample: Sample) -> tuple[str, ...]:
    """The answers that count as right."""
    return tuple(sample.references["answers"]) if "answers" in sample.references else (sample.references["answer"],)


class ExactMatch(_Accuracy):
    """Percent of answers that are one of the references."""

    name = "exact_match"
    protocol = "the whole answer equals a reference, both in VQA's normal form"
    figure = "exact match"

    def score(self, outcome: Outcome) -> float:
        """1 or 0."""
        return float(normalized(outcome.text) in {normalized(answer) for answer in _references(outcome.sample)})


class GQAAccuracy(_Accuracy):
    """Percent of answers that are the reference, as GQA's evaluation counts them."""

    name = "gqa"
    protocol = "the whole answer, in lower case without a full stop, equals the reference"

    def score(self, outcome: Outcome) -> float:
        """1 or 0."""
        return float(outcome.text.strip().rstrip(".").lower() == outcome.sample.references["answer"])


class VQAAccuracy(_Accuracy):
    """VQA accuracy (VQAv2, OK-VQA): the share of annotators who agree, three of them being enough, averaged over all
    choices of all annotators but one. References: "answers", one of each annotator."""

    name = "vqa"
    protocol = "official VQA evaluation: min(1, agreeing / 3), mean over leaving out one annotator"

    def score(self, outcome: Outcome) -> float:
        """From 0 to 1."""
        given, answers = one_line(outcome.text), [one_line(answer) for answer in outcome.sample.references["answers"]]
        if len(set(answers)) > 1:
            given, answers = normalized(given), [normalized(answer) for answer in answers]
        same = [answer == given for answer in answers]
        return sum(min(1.0, (sum(same) - own) / _ENOUGH) for own in same) / len(same)


class MultipleChoice(_Accuracy):
    """Percent of answers that choose the right one of lettered choices, as MVBench's evaluation finds the letter.

    The first word of the answer's first line, without full stops, is the letter, with or without parentheses, or
    contains the letter in parentheses. References: "choices", and "answer", which is one of them.
    """

    name = "multiple_choice"
    protocol = "MVBench: the letter that the answer's first word is; the mean of all questions, and of each category"

    def score(self, outcome: Outcome) -> float:
        """1 or 0. The original counts a first word without letters as right; here it is wrong."""
        word = outcome.text.strip().split("\n")[0].split(" ")[0].lower()
        option = f"({_letter(outcome.sample).lower()})"
        bare = word.replace(".", "")
        return float(option in word or bare.strip("()") != "" and bare in option)


class ScienceQAAccuracy(_Accuracy):
    """Percent of answers that choose the right one of lettered choices, by LLaVA's rules for ScienceQA: the answer is
    the letter, begins with "B. ", or has one sentence "The answer is B". References: as for MultipleChoice."""

    name = "scienceqa"
    protocol = "ScienceQA as LLaVA: the answer is a letter, begins with 'B. ', or says 'The answer is B.'; else wrong"

    def score(self, outcome: Outcome) -> float:
        """1 or 0."""
        text = outcome.text.strip()
        letter = text[:1] if text in tuple(_OPTIONS) or text[:1] in _OPTIONS and text[1:3] == ". " else ""
        if not letter:
            said = _SENTENCE.findall(text)
            letter = said[0] if len(said) == 1 else ""
        return float(letter == _letter(outcome.sample))


def _letter(sample: Sample) -> str:
    """The letter of the right choice; the last one, if choices are the same."""
    choices = list(sample.references["choices"])
    return string.ascii_uppercase[len(choices) - 1 - choices[::-1].index(sample.references["answer"])]
