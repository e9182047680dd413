"""GQA: compositional questions about images."""

import pathlib
from collections.abc import Iterator, Sequence

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.evaluation.metrics.answers import GQAAccuracy
from nextgpt_jax.evaluation.tasks.files import Fields, Media, annotations, read_objects
from nextgpt_jax.evaluation.tasks.wording import SHORT
from nextgpt_jax.evaluation.types import Metric, Sample, Task

_QUESTIONS = "testdev_balanced_questions.json"
_GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"
LAYOUT = {_QUESTIONS: f"{_GQA}/questions1.2.zip", "images/": f"{_GQA}/images.zip"}


def load(data: pathlib.Path) -> Iterator[Sample]:
    """The balanced questions of testdev."""
    path = annotations(data, LAYOUT, _QUESTIONS, f"questions1.2/{_QUESTIONS}")

    def question(_: str, record: object) -> tuple[str, str, str, str]:
        fields = Fields(record)
        kind = fields.fields("types").text("structural")
        return fields.name("imageId"), fields.text("question"), fields.text("answer"), kind

    questions = read_objects(path, question)
    images = Media(data, LAYOUT, "images")
    files = [images.find(f"{image}.jpg") for image, *_ in questions.values()]
    images.check(path)
    for (number, (_, text, answer, kind)), file in zip(questions.items(), files):
        yield Sample(number, f"<image>\n{text}\n{SHORT}", {"image": [file]}, {"answer": answer}, category=kind)


def metrics(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """Accuracy."""
    return (GQAAccuracy(samples),)


TASKS = (
    Task(
        "gqa",
        "compositional questions about images: GQA",
        LAYOUT,
        load,
        metrics,
        {"modality": "text", "temperature": 0.0, "max_new_tokens": 16},
        {"accuracy": 58.0},
        f"testdev, balanced, 12,578 questions; 'QUESTION {SHORT}'",
        "The paper does not publish its prompt.",
    ),
)
