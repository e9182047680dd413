"""ScienceQA: multiple-choice questions of school science, half of them with an image."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.answers import ScienceQAAccuracy
from nextgpt_jax.evaluation.tasks.files import Fields, Media, annotations, read_objects
from nextgpt_jax.evaluation.types import Metric, Sample, Task

_PUBLISHER = "https://github.com/lupantech/ScienceQA, data/scienceqa"
LAYOUT = {
    "problems.json": _PUBLISHER,
    "pid_splits.json": _PUBLISHER,
    "test/": "https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip",
}
_LETTERS = "ABCDE"
INSTRUCTION = "Answer with the option's letter from the given choices directly."


class _Problem(NamedTuple):
    question: str
    choices: list[str]
    answer: int
    hint: str
    image: str
    subject: str


def _problem(_: str, record: object) -> _Problem:
    fields = Fields(record)
    choices = fields.texts("choices")
    if not 2 <= len(choices) <= len(_LETTERS):
        raise UserError(f"has {len(choices)} choices, not 2 to {len(_LETTERS)}")
    if not 0 <= (answer := fields.integer("answer")) < len(choices):
        raise UserError(f"answer is {answer}, but there are {len(choices)} choices")
    hint, image = fields.optional_text("hint"), fields.optional_text("image")
    return _Problem(fields.text("question"), choices, answer, hint, image, fields.text("subject"))


def load(data: pathlib.Path) -> Iterator[Sample]:
    """The problems of the test split."""
    path, splits = (
        annotations(data, LAYOUT, name, f"data/scienceqa/{name}") for name in ("problems.json", "pid_splits.json")
    )
    problems = read_objects(path, _problem)

    def split(_: str, value: object) -> list[str]:
        return Fields({"split": value}).texts("split")

    if not (chosen := read_objects(splits, split).get("test")):
        raise UserError(f"{splits} lacks test")
    if unknown := [number for number in chosen if number not in problems]:
        raise UserError(f"{splits}: there is no problem {unknown[0]} in {path}")
    images, files = Media(data, LAYOUT, "test", "images/test", "data/scienceqa/images/test"), {}
    for number in chosen:
        if image := problems[number].image:
            files[number] = images.find(f"{number}/{image}")
    images.check(splits)
    for number in chosen:
        problem, inputs = problems[number], {"image": [files[number]]} if number in files else {}
        options = " ".join(f"({letter}) {choice}" for letter, choice in zip(_LETTERS, problem.choices))
        prompt = (
            f"{'<image>' if inputs else ''}\nContext: {problem.hint or 'N/A'}\nQuestion: "
            f"{problem.question}\nOptions: {options}\n{INSTRUCTION}"
        )
        references = {"choices": problem.choices, "answer": problem.choices[problem.answer]}
        yield Sample(number, prompt.strip(), inputs, references, category=problem.subject)


def metrics(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """Accuracy."""
    return (ScienceQAAccuracy(samples),)


TASKS = (
    Task(
        "scienceqa",
        "multiple-choice questions of school science: ScienceQA",
        LAYOUT,
        load,
        metrics,
        {"modality": "text", "temperature": 0.0, "max_new_tokens": 32},
        {},
        "test split, 4,241 problems, 2,017 of them with an image; 'Context: ...', 'Question: ...', 'Options: (A) "
        f"...', '{INSTRUCTION}'",
        "LLaVA's protocol; the paper has no figure.",
    ),
)
